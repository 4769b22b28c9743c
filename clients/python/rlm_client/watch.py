"""A watch that survives the connection it began on, and whoever takes its events slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol, TypeVar

import grpc
from rlm.v1.errors_pb2 import ErrorReason

from rlm_client.errors import from_call
from rlm_client.retry import Retry, is_passing


class Numbered(Protocol):
    """Something that happened. Those of one watch are numbered from 1; 0 has no number."""

    @property
    def sequence(self) -> int:
        """Its number."""
        ...


Event = TypeVar("Event", bound=Numbered)
Told = TypeVar("Told", bound=Numbered, covariant=True)


class Response(Protocol[Told]):
    """A response of a call that tells events."""

    @property
    def event(self) -> Told:
        """The event that it tells."""
        ...

    def HasField(self, field_name: Literal["event"]) -> bool:  # noqa: N802 - the generated code's
        """Whether it tells one."""
        ...


class Stream(Protocol[Told]):
    """The responses of one call that tells events."""

    def __iter__(self) -> Iterator[Response[Told]]:
        """Give the responses as they come; raises grpc.RpcError where the call ends with an error."""
        ...

    def cancel(self) -> bool:
        """End the call; does nothing to one that has ended."""
        ...


def resumed(open_at: Callable[[int], Stream[Event]], from_sequence: int, retry: Retry) -> Iterator[Event]:
    """Give events in their order, each once, opening the stream again where it breaks: from a sequence number on.

    The count of attempts starts over with every new event.

    Raises:
        RlmError: the stream ended with an error that a new stream would not cure, or the attempts are used up.
    """
    following = max(from_sequence, 1)
    waits = retry.waits()
    while True:
        stream = open_at(following)
        try:
            for response in stream:
                if not response.HasField("event"):
                    continue
                sequence = response.event.sequence
                if 0 < sequence < following:
                    continue
                if sequence:
                    following = sequence + 1
                    waits = retry.waits()
                yield response.event
        except grpc.RpcError as broken:
            error = from_call(broken)
            again = is_passing(error) or error.error_reason == ErrorReason.ERROR_REASON_WATCHER_TOO_SLOW
            seconds = next(waits, None) if again else None
            if seconds is None:
                raise error from None
            retry.wait(seconds, error)
        else:
            return
        finally:
            stream.cancel()
