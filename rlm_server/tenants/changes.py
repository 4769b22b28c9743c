"""The number of the last change to a tenant or a key. Every change takes the next one, and so others hear of it."""

from __future__ import annotations

from rlm_server.database.engine import Connection


def next_version(connection: Connection) -> int:
    """Take the next number, for what this transaction changes."""
    (number,) = connection.execute("UPDATE tenant_version SET number = number + 1 RETURNING number").fetchone()
    return int(number)


def version(connection: Connection) -> int:
    """Return the number of the last change."""
    (number,) = connection.execute("SELECT number FROM tenant_version").fetchone()
    return int(number)
