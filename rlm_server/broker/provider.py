"""What a provider of models does: a request goes in, and a reply comes out, or one of a few kinds of failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from rlm_server.broker.outputs import Lowering
from rlm_server.ledger.usage import Usage


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What is sent to a model. `model` is the name the caller used; `max_tokens` bounds the output.

    `temperature` is sent to models that take one (`rlm_server/broker/providers/temperatures.py`), and `stop`, the texts
    before which a model is to stop, to those that take some (`rlm_server/broker/providers/stops.py`). Where `lowering`
    is given, a call for whose worst case there is no room may be sent with a lower `max_tokens`.
    """

    model: str
    messages: tuple[Message, ...]
    system: str = ""
    max_tokens: int = 4096
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    lowering: Lowering | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered. `stopped` is `length` where `max_tokens` cut the answer off.

    `usage` is None where the provider answered without saying what it counted; the call then costs its whole hold.
    `max_tokens` is that of the request as it was sent; a provider need not say it.
    """

    text: str
    usage: Usage | None
    stopped: Literal["end", "length", "refusal"] = "end"
    max_tokens: int = 0


class Failure(StrEnum):
    """Why a model call failed, in the few kinds that callers can react to."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TOO_LONG = "too_long"
    REFUSED = "refused"
    AUTH = "auth"
    BAD_REQUEST = "bad_request"
    TIMED_OUT = "timed_out"
    GONE = "gone"
    UNAVAILABLE = "unavailable"
    """The route failed again and again and is not asked for now; see `breaker`."""
    INTERNAL = "internal"
    """This server failed, before the request left."""


class ProviderError(Exception):
    """A provider did not answer.

    `billed` is False only where the provider is known not to bill this failure. Anything ambiguous is True, and costs
    the whole hold. `retry_after` is in seconds, where the provider named it. The message is fit for a tenant to read:
    it holds no key and no text of the provider's own.
    """

    def __init__(self, failure: Failure, message: str, *, billed: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.billed = billed
        self.retry_after = retry_after


class DeadlinePassed(ProviderError):
    """The caller's deadline came first, which says nothing of the provider."""

    def __init__(self, message: str, *, billed: bool) -> None:
        super().__init__(Failure.TIMED_OUT, message, billed=billed)


class NotRecorded(ProviderError):
    """Nothing was sent, because the books could not be written: the database is away."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure.INTERNAL, message, billed=False)


class Provider(Protocol):
    """One way to reach models. Another provider is another class with these two methods."""

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one attempt, without retries. Cancelling the task abandons the request.

        Raises:
            ProviderError: the attempt failed.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
