"""REPLs for callers who bring their own loop."""
