"""Requests that change something and may come again: the same is answered as it was, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter

from rlm_server.database.engine import Connection

DELETION_KNOWN_MS = 86_400_000
"""Milliseconds, a day, for which it is known at least that a request deleted something."""
_FORGOTTEN_WITH_ONE = 4
"""Old deletions that are forgotten with each new one, so that none are left where they go on."""

T = TypeVar("T")


class RequestIdReused(Exception):
    """A request id was sent before, with another content."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the request id {request_id!r} was sent before, with another content: choose another")
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may come again. `content_sha256` is of all that it says. An operator's has an empty `tenant`.

    Where `kept_digest` is given, that is kept in its place: what the request says cannot be guessed by it.
    """

    tenant: str
    method: str
    id: str
    content_sha256: str
    kept_digest: str = ""


def answered(connection: Connection, request: Request | None) -> str | None:
    """Return what a request was answered with before, as it was kept, or None where it is new or has no id.

    Raises:
        RequestIdReused: it asked for something else.
    """
    if request is None:
        return None
    row = connection.execute(
        "SELECT content_sha256, answer FROM request WHERE tenant = ? AND method = ? AND request_id = ?",
        (request.tenant, request.method, request.id),
    ).fetchone()
    if row is None:
        return None
    content, kept = row
    if content not in ("", request.content_sha256, request.kept_digest):  # of a former version's it may not be known
        raise RequestIdReused(request.id)
    return str(kept)


def answer(
    connection: Connection,
    request: Request | None,
    kept: str,
    at: int,
    *,
    thing: str = "",
    forget_at: int | None = None,
) -> None:
    """Keep what a request is answered with, in the transaction that does what it asks. Times are Unix milliseconds.

    It is the id of what was made or changed, or all of the answer but secrets. `forget_about` its `thing` forgets the
    request; without one it is kept, or where it is to be forgotten by itself, until `forget_at` at least.
    """
    if request is not None:
        connection.execute(
            "INSERT INTO request (tenant, method, request_id, content_sha256, answer, at, thing, forget_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (request.tenant, request.method, request.id, request.kept_digest or request.content_sha256, kept, at,
             thing, forget_at),
        )  # fmt: skip


def answer_deletion(connection: Connection, request: Request | None, at: int) -> None:
    """Keep for `DELETION_KNOWN_MS` at least that a request deleted something, in the transaction that does so."""
    if request is not None:
        known = "SELECT method, request_id FROM request WHERE tenant = ? AND forget_at < ? ORDER BY forget_at LIMIT ?"
        for method, id in connection.execute(known, (request.tenant, at, _FORGOTTEN_WITH_ONE)).fetchall():
            forget(connection, request.tenant, method, id)
        answer(connection, request, "", at, forget_at=at + DELETION_KNOWN_MS)


def once(
    connection: Connection, request: Request | None, answers: TypeAdapter[T], work: Callable[[], T], at: int
) -> tuple[T, bool]:
    """Do what a request asks for, or return all that it was answered before; and say whether that is so.

    `at` is Unix milliseconds.

    Raises:
        RequestIdReused: the same request id asked for something else.
    """
    known = answered(connection, request)
    if known is not None:
        return answers.validate_json(known), True
    done = work()
    answer(connection, request, answers.dump_json(done).decode(), at)
    return done, False


def forget(connection: Connection, tenant: str, method: str, request_id: str) -> None:
    """Forget a request, as what it made is deleted."""
    connection.execute(
        "DELETE FROM request WHERE tenant = ? AND method = ? AND request_id = ?", (tenant, method, request_id)
    )


def forget_about(connection: Connection, tenant: str, thing: str) -> None:
    """Forget a tenant's requests about a thing, as it is deleted."""
    connection.execute("DELETE FROM request WHERE tenant = ? AND thing = ? AND thing <> ''", (tenant, thing))


def forget_some(connection: Connection, tenant: str, most: int) -> int:
    """Forget at most so many of a tenant's requests, and return how many."""
    query = "SELECT method, request_id FROM request WHERE tenant = ? LIMIT ?"
    known = connection.execute(query, (tenant, most)).fetchall()
    for method, request_id in known:
        forget(connection, tenant, method, request_id)
    return len(known)
