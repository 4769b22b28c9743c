"""What operators asked for, so that a request that comes again is answered as it was, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter

from rlm_server.clock import now
from rlm_server.database.engine import Connection

T = TypeVar("T")


class RequestIdReused(Exception):
    """A request id was sent before, with another content."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the request id {request_id!r} was sent before, with another content: choose another")
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may come again. `content` is a hash of all that it says."""

    id: str
    content: str


def once(
    connection: Connection, request: Request | None, answers: TypeAdapter[T], work: Callable[[], T]
) -> tuple[T, bool]:
    """Do what a request asks for, or return what it was answered before; and say whether that is so.

    Raises:
        RequestIdReused: the same request id asked for something else.
    """
    if request is not None:
        known = connection.execute(
            "SELECT content, answer FROM operator_request WHERE id = ?", (request.id,)
        ).fetchone()
        if known is not None:
            content, answer = known
            if content != request.content:
                raise RequestIdReused(request.id)
            return answers.validate_json(answer), True
    answer = work()
    if request is not None:
        row = (request.id, request.content, answers.dump_json(answer).decode(), now())
        connection.execute("INSERT INTO operator_request (id, content, answer, at) VALUES (?, ?, ?, ?)", row)
    return answer, False
