"""The `rlm-server` command."""
