"""The Python client and the `rlm` command, against a server of this directory's own."""
