"""The recursive loop."""

from rlm_server.runs.schema import MIGRATIONS

__all__ = ["MIGRATIONS"]
