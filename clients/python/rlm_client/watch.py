"""A watch that survives the connection it began on, and whoever takes its events slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import grpc
from rlm.v1 import run_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_client.errors import from_call
from rlm_client.retry import Retry, is_passing


class Stream(Protocol):
    """The responses of one WatchRun call."""

    def __iter__(self) -> Iterator[run_pb2.WatchRunResponse]:
        """Give the responses as they come; raises grpc.RpcError where the call ends with an error."""
        ...

    def cancel(self) -> bool:
        """End the call; does nothing to one that has ended."""
        ...


Open = Callable[[int], Stream]
"""Opens a stream of a run's events from a sequence number on."""


def resumed(open_at: Open, from_sequence: int, retry: Retry) -> Iterator[run_pb2.RunEvent]:
    """Give a run's events in their order, each once, opening the stream again where it breaks.

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
                if not response.HasField("event") or response.event.sequence < following:
                    continue
                following = response.event.sequence + 1
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
