"""Labels of anything that has an id: a kind says of what. They stay when it is deleted, for what it spent.

They go with their tenant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlm_server.database.engine import Connection

MAX_LABELS = 16
"""Labels of one thing."""
MAX_LABEL = 63
"""Characters of a label's key, and of its value."""


def put(connection: Connection, kind: str, id: str, labels: Mapping[str, str]) -> None:
    """Have these be the labels of a thing, instead of those it had."""
    connection.execute("DELETE FROM label WHERE kind = ? AND id = ?", (kind, id))
    if labels:
        rows = [(kind, id, key, value) for key, value in labels.items()]
        connection.executemany("INSERT INTO label (kind, id, key, value) VALUES (?, ?, ?, ?)", rows)


def forget(connection: Connection, kinds: Sequence[str], ids: Sequence[str]) -> None:
    """Have things have no labels, each whatever it is of these kinds."""
    rows = [(kind, id) for id in ids for kind in kinds]
    connection.executemany("DELETE FROM label WHERE kind = ? AND id = ?", rows)


def of(connection: Connection, kind: str, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the labels of some things by their ids, each in the order of its keys."""
    found: dict[str, dict[str, str]] = {id: {} for id in ids}
    if found:
        places = ", ".join("?" * len(found))
        query = f"SELECT id, key, value FROM label WHERE kind = ? AND id IN ({places}) ORDER BY key"  # noqa: S608
        for id, key, value in connection.execute(query, (kind, *found)).fetchall():
            found[id][key] = value
    return found


def having(kinds: Sequence[str], column: str, labels: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the condition that what `column` names is of one of these kinds and has all of these labels, and values.

    `column` is written with the name of its table.
    """
    places = ", ".join("?" * len(kinds))
    has = (
        f"EXISTS (SELECT 1 FROM label WHERE label.kind IN ({places}) AND label.id = {column} "  # noqa: S608
        "AND label.key = ? AND label.value = ?)"
    )
    values = [value for key, named in labels.items() for value in (*kinds, key, named)]
    return " AND ".join([has] * len(labels)) or "1 = 1", values


def value_of(kinds: Sequence[str], column: str, key: str) -> tuple[str, list[str]]:
    """Return the SQL for the value of a label of what `column` names, empty without it, and the values in it."""
    places = ", ".join("?" * len(kinds))
    value = (
        f"coalesce((SELECT min(label.value) FROM label WHERE label.kind IN ({places}) AND label.id = {column} "  # noqa: S608
        "AND label.key = ?), '')"
    )
    return value, [*kinds, key]
