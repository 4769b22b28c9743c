"""The benchmark: that it measures, never what."""
