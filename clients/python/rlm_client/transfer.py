"""One upload, through however many streams it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol, Self

import grpc
from rlm.v1 import context_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_client.documents import SourceChanged
from rlm_client.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound, RlmError, typed
from rlm_client.retry import Retry, is_passing
from rlm_client.upload import Message, Upload

Progress = Callable[[int, int], None]
"""Told the bytes that the server has and the bytes in all, in the thread that uploads."""

Status = context_pb2.GetUploadStatusResponse

_NOTHING = Status()
_PLACES = {"chunk.offset", "documents.first_document"}
_TELL_SECONDS = 0.5  # between questions for how much has arrived


class Call(Protocol):
    """A stream that is being sent."""

    def result(self, timeout: float | None = None) -> context_pb2.UploadContextResponse:
        """Wait for the answer; raises grpc.FutureTimeoutError, grpc.FutureCancelledError or grpc.RpcError."""
        ...

    def cancel(self) -> bool:
        """End the call; does nothing to one that has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Transfer:
    """How uploads reach the server: `send` opens a stream, `ask` asks by a request id how much has arrived."""

    send: Callable[[Iterator[Message]], Call]
    ask: Callable[[str], Status]
    retry: Retry
    progress: Progress | None = None

    def upload(self, upload: Upload, begun: bool = False) -> context_pb2.Context:
        """Send an upload. If the stream breaks, continue in another from where the server says.

        With `begun`, the server may have a part already. The count of attempts starts over with every attempt that
        brings the upload further than it ever was.

        Raises:
            AlreadyExists: the request id is that of another upload.
            OSError: a source can no longer be read.
            RlmError: the stream ended with an error that a new stream would not cure, or the attempts are used up.
            SourceChanged: a source is not what was measured.
        """
        arrived = None if begun else _NOTHING
        furthest, waits = 0, self.retry.waits()
        while True:
            try:
                if arrived is None:
                    arrived = self._arrived(upload)
                if arrived.received_bytes > furthest:
                    furthest, waits = arrived.received_bytes, self.retry.waits()
                return self._rest_sent(upload, arrived)
            except RlmError as error:
                seconds = next(waits, None) if _is_curable(error) else None
                if seconds is None:
                    raise
                self.retry.wait(seconds, error)
                arrived = None

    def _arrived(self, upload: Upload) -> Status:
        """Ask how much the server has. It is nothing if the server does not know the upload, or no longer does."""
        header = upload.header
        try:
            arrived = self.ask(header.request_id)
        except NotFound:
            return _NOTHING
        stored = arrived.context if arrived.HasField("context") else None
        if (stored and stored.sha256 != header.sha256) or arrived.received_bytes > header.size_bytes:
            raise AlreadyExists(f"the request id {header.request_id!r} is that of an upload of something else")
        return arrived

    def _rest_sent(self, upload: Upload, arrived: Status) -> context_pb2.Context:
        """Send in one stream all that has not arrived."""
        if not arrived.HasField("context"):
            self._tell(arrived.received_bytes, upload)
            arrived = Status(context=self._sent(upload, arrived))
        self._tell(upload.header.size_bytes, upload)
        return arrived.context

    def _sent(self, upload: Upload, arrived: Status) -> context_pb2.Context:
        sending = _Sending(upload.messages(arrived.received_bytes, arrived.received_document_count))
        call = self.send(sending)
        sending.call.put(call)
        try:
            with typed():
                return self._answer(call, upload)
        except RlmError as error:
            if sending.failure is not None:
                raise sending.failure from None
            if isinstance(error, InvalidArgument) and any(one.subject == "header.sha256" for one in error.violations):
                raise SourceChanged(f"a source changed while it was uploaded; nothing was stored ({error})") from None
            raise
        finally:
            call.cancel()

    def _answer(self, call: Call, upload: Upload) -> context_pb2.Context:
        while True:
            try:
                return call.result(timeout=None if self.progress is None else _TELL_SECONDS).context
            except grpc.FutureTimeoutError:
                self._tell_arrived(upload)
            except grpc.FutureCancelledError:
                raise Cancelled("the upload was cancelled") from None

    def _tell_arrived(self, upload: Upload) -> None:
        with suppress(RlmError):  # the stream itself tells what is wrong
            arrived = self.ask(upload.header.request_id)
            self._tell(upload.header.size_bytes if arrived.HasField("context") else arrived.received_bytes, upload)

    def _tell(self, received: int, upload: Upload) -> None:
        if self.progress is not None:
            self.progress(received, upload.header.size_bytes)


def _is_curable(error: RlmError) -> bool:
    """Tell whether another stream, begun where the server then says, may bring the upload to its end."""
    # A server ends a stream that sent nothing for long, because its machine slept or its source stalled.
    if is_passing(error) or error.error_reason == ErrorReason.ERROR_REASON_UPLOAD_STALLED:
        return True
    # It may have taken more of a broken stream after it was asked how much it has.
    return isinstance(error, InvalidArgument) and bool(_PLACES & {one.subject for one in error.violations})


class _Sending:
    """The messages of a stream, for the thread in which gRPC sends them.

    What goes wrong while they are made ends the call and is kept: gRPC itself would log it and answer UNKNOWN.
    """

    def __init__(self, messages: Iterator[Message]) -> None:
        self.call: SimpleQueue[Call] = SimpleQueue()
        self.failure: Exception | None = None
        self._messages = messages

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            self.call.get().cancel()
            raise StopIteration from None
