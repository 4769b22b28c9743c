"""What a provider's failures mean: their kind, whether they were billed, and when to try again.

A provider's own words are read to tell the kinds apart. They are never repeated: they may quote the prompt or the key.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from email.utils import parsedate_to_datetime

import aiohttp

from rlm_server.broker.provider import Failure, ModelReply, ProviderError
from rlm_server.broker.providers.http import ErrorStatus, TooLarge

STREAM_ABOVE = 8_192
"""Answers that may be longer, in tokens, are streamed: a silent connection held for minutes is cut by what is between,
and Anthropic asks for streams where an answer may take more than ten minutes (8,192 tokens of its oldest models)."""

_TOO_LONG = (
    *("prompt is too long", "context_length_exceeded", "maximum context length", "context window"),
    *("exceed context limit", "exceed_context_size", "request_too_large", "string_above_max_length"),
)
_REFUSED = ("content_filter", "content_policy_violation", "invalid_prompt")
_NO_CREDIT = ("insufficient_quota", "credit balance is too low", "billing_hard_limit_reached")

_KINDS = {
    401: Failure.AUTH,
    402: Failure.AUTH,
    403: Failure.AUTH,
    408: Failure.TIMED_OUT,
    413: Failure.TOO_LONG,
    429: Failure.RATE_LIMITED,
    503: Failure.OVERLOADED,
    504: Failure.TIMED_OUT,
    529: Failure.OVERLOADED,
}
_CLIENT_GONE = 499
_MAYBE_BILLED = frozenset({408, _CLIENT_GONE})
"""Below 500. Gateways say 408 when the provider behind them, who bills, took too long."""

_NOT_BILLED = frozenset({503, 529})
"""Above 499."""

_NEVER_SENT = (
    *(aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError),
    *(aiohttp.ClientHttpProxyError, aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
)
_WORDS = {
    Failure.RATE_LIMITED: "the provider's rate limit is reached",
    Failure.OVERLOADED: "the provider is overloaded",
    Failure.TOO_LONG: "the prompt is longer than the model takes",
    Failure.REFUSED: "the provider refused the prompt",
    Failure.AUTH: "the provider does not accept this server's key, or the key has no credit left",
    Failure.BAD_REQUEST: "the provider did not accept the request",
    Failure.TIMED_OUT: "the provider timed out",
    Failure.GONE: "the provider failed",
}


def unreadable() -> ProviderError:
    """The failure of an answer that made no sense, or that reported an error after it was accepted."""
    return ProviderError(Failure.GONE, "the provider's answer was not a reply", billed=True)


def cut_off() -> ProviderError:
    """The failure of an answer that stopped before its end."""
    return ProviderError(Failure.GONE, "the provider's answer was cut off", billed=True)


async def reply_or_error(work: Awaitable[ModelReply]) -> ModelReply:
    """Await one attempt and turn whatever it raises into a ProviderError.

    The error is raised outside the handler, so that it carries no reference to the exception that has the provider's
    text in it.
    """
    try:
        return await work
    except ProviderError as error:
        failure = ProviderError(error.failure, str(error), billed=error.billed, retry_after=error.retry_after)
    except ErrorStatus as error:
        failure = _from_status(error)
    except Exception as error:  # an answer may be wrong in any way
        failure = _from_transport(error)
    raise failure


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds a provider asks to wait, from `retry-after-ms` or `retry-after` (seconds, or an HTTP date).

    `now` is a Unix time, for dates. None where the provider does not say, or says nothing readable.
    """
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1_000
    if (header := headers.get("retry-after")) is None:
        return None
    if (seconds := _number(header)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(header).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _number(said: str | None) -> float | None:
    try:
        number = float(said or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _from_status(error: ErrorStatus) -> ProviderError:
    status = error.status
    if status < 400:
        return _worded(Failure.BAD_REQUEST, status, billed=False)
    kind = _kind(status, error.body.lower())
    billed = status in _MAYBE_BILLED or (status >= 500 and status not in _NOT_BILLED)
    return _worded(kind, status, billed=billed, wait=retry_after(error.headers))


def _kind(status: int, body: str) -> Failure:
    if status in (400, 413, 422) and any(word in body for word in _TOO_LONG):
        return Failure.TOO_LONG
    if status in (400, 403) and any(word in body for word in _REFUSED):
        return Failure.REFUSED
    if status in (400, 429) and any(word in body for word in _NO_CREDIT):
        return Failure.AUTH
    return _KINDS.get(status, Failure.GONE if status >= _CLIENT_GONE else Failure.BAD_REQUEST)


def _worded(kind: Failure, status: int, *, billed: bool, wait: float | None = None) -> ProviderError:
    return ProviderError(kind, f"{_WORDS[kind]} (status {status})", billed=billed, retry_after=wait)


def _from_transport(error: Exception) -> ProviderError:
    if isinstance(error, _NEVER_SENT):
        return ProviderError(Failure.GONE, "the provider cannot be reached", billed=False)
    if isinstance(error, TooLarge):
        return ProviderError(Failure.GONE, "the provider's answer was far larger than asked for", billed=True)
    if isinstance(error, TimeoutError):
        return ProviderError(Failure.TIMED_OUT, "the provider timed out", billed=True)
    if isinstance(error, aiohttp.ClientError | OSError):
        return cut_off()
    return unreadable()
