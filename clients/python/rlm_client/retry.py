"""Repeating what is safe to repeat."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rlm_client.errors import Aborted, RlmError, Unavailable

Result = TypeVar("Result")


def is_passing(error: RlmError) -> bool:
    """Tell whether what broke a stream is likely to be over soon, so that another stream can go on."""
    # A proxy that gives up on a quiet stream resets it, which arrives as INTERNAL.
    return isinstance(error, Unavailable | Aborted) or "RST_STREAM" in error.message


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after which waits, a call is repeated while the server is unavailable.

    `attempts` counts the first one. The waits start at `first_seconds` and double up to `longest_seconds`; a server
    that asks for a longer wait gets it, up to `longest_seconds`.
    """

    attempts: int = 4
    first_seconds: float = 0.2
    longest_seconds: float = 5.0

    def waits(self) -> Iterator[float]:
        """Give the seconds to wait before each repeat; ends when there are no more attempts."""
        for repeat in range(self.attempts - 1):
            yield min(self.first_seconds * 2**repeat, self.longest_seconds)

    def wait(self, seconds: float, error: RlmError) -> None:
        """Wait as long as planned, or as long as the server asked for where that is longer."""
        time.sleep(min(max(seconds, error.retry_seconds or 0.0), self.longest_seconds))

    def call(self, attempt: Callable[[], Result]) -> Result:
        """Make one idempotent call, again while the server is unavailable.

        Raises:
            RlmError: what the last attempt ended with.
        """
        for seconds in self.waits():
            try:
                return attempt()
            except (Unavailable, Aborted) as error:
                self.wait(seconds, error)
        return attempt()


def named(request_id: str | None = None) -> str:
    """Give a request its id, a new one where the caller has none. A call is repeated only under the id it has.

    Raises:
        ValueError: it is empty, which the server would take for none.
    """
    if request_id == "":
        raise ValueError("request_id is empty: leave it out, and one is made up")
    return str(uuid.uuid4()) if request_id is None else request_id
