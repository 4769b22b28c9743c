"""What is kept: tenants, keys and contexts, in a database that commits in groups."""

from rlm_server.store.schema import MIGRATIONS

__all__ = ["MIGRATIONS"]
