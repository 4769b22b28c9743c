"""A connection and the calls made over it: how each is tried again, how a stream is given up, how all is closed."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc

from rlm_client import errors
from rlm_client.connection import Connection
from rlm_client.retry import Retry

Request = TypeVar("Request")
Result = TypeVar("Result")

UNARY_SECONDS = 30.0
"""What a call may take that has one answer and waits for nothing."""


class Caller:
    """Makes calls over a connection, safe to share between threads; a context manager that closes it.

    Every method raises an RlmError subclass for what the server answers.
    """

    def __init__(self, connection: Connection, retry: Retry | None) -> None:
        self._connection = connection
        self._metadata = connection.metadata
        self._retry = retry or Retry()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with Cancelled."""
        self._connection.channel.close()

    def _unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Result],
        request: Request,
        seconds: float = UNARY_SECONDS,
    ) -> Result:
        """Make a call that is safe to repeat, again while the server is unavailable."""
        return self._retry.call(errors.typed()(lambda: method(request, timeout=seconds, metadata=self._metadata)))

    def _streamed(self, method: grpc.UnaryStreamMultiCallable[Request, Result], request: Request) -> Iterator[Result]:
        """Give what a call tells, as it is taken. It is not made again, and is given up where no more is taken."""
        call = method(request, metadata=self._metadata)
        try:
            with errors.typed():
                yield from call
        finally:
            call.cancel()
