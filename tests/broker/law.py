"""What the law of money says of every fault: what the caller sees, and what becomes of the hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlm_server.broker.provider import Failure
from tests.fake_provider.server import Fault

End = Literal["post", "void", "post_in_full"]


@dataclass(frozen=True)
class Law:
    """How the hold of the attempt that met a fault ends, and the failure that a caller sees, if one.

    An attempt that is `retried` is followed by one that meets no fault.
    """

    end: End
    failure: Failure | None = None
    retried: bool = False


ANSWERED = Law("post")
"""A reply, at the cost that was reported."""

UNCOUNTED = Law("post_in_full")
"""A reply; but nobody here knows what it cost."""

RETRIED = Law("void", retried=True)
BROKEN = Law("post_in_full", Failure.GONE)
LATE = Law("post_in_full", Failure.TIMED_OUT)

LAWS: dict[Fault, Law] = {
    Fault.BAD_REQUEST: Law("void", Failure.BAD_REQUEST),
    Fault.BAD_KEY: Law("void", Failure.AUTH),
    Fault.FORBIDDEN: Law("void", Failure.AUTH),
    Fault.NO_SUCH_MODEL: Law("void", Failure.BAD_REQUEST),
    Fault.REQUEST_TIMEOUT: LATE,
    Fault.RATE_LIMITED: RETRIED,
    Fault.RATE_LIMITED_WITH_HINT: RETRIED,
    Fault.RATE_LIMITED_IN_HTML: RETRIED,
    Fault.RATE_LIMITED_CUT: RETRIED,
    Fault.RATE_LIMITED_STALLING: RETRIED,
    Fault.RATE_LIMITED_ENDLESS: RETRIED,
    Fault.SERVER_ERROR: BROKEN,
    Fault.BAD_GATEWAY: BROKEN,
    Fault.UNAVAILABLE: RETRIED,
    Fault.GATEWAY_TIMEOUT: LATE,
    Fault.OVERLOADED: RETRIED,
    Fault.TOO_LONG: Law("void", Failure.TOO_LONG),
    Fault.NO_CREDIT: Law("void", Failure.AUTH),
    Fault.REFUSED: Law("void", Failure.REFUSED),
    Fault.REDIRECT: Law("void", Failure.BAD_REQUEST),
    Fault.SLOW: ANSWERED,
    Fault.DRIP: ANSWERED,
    Fault.STALL: LATE,
    Fault.STALL_INSIDE: LATE,
    Fault.LATE: LATE,
    Fault.RESET: BROKEN,
    Fault.HANG_UP: BROKEN,
    Fault.CLOSES: ANSWERED,
    Fault.CUT_HEAD: BROKEN,
    Fault.CUT: BROKEN,
    Fault.CUT_EVENT: BROKEN,
    Fault.CUT_BEFORE_USAGE: BROKEN,
    Fault.CUT_AFTER_USAGE: BROKEN,
    Fault.ENDS_EARLY: BROKEN,
    Fault.ENDS_BEFORE_USAGE: BROKEN,
    Fault.ERROR_INSIDE: BROKEN,
    Fault.NONSENSE: BROKEN,
    Fault.NOT_AN_OBJECT: BROKEN,
    Fault.DEEP: BROKEN,
    Fault.NOT_UNICODE: BROKEN,
    Fault.NOT_A_STRING: BROKEN,
    Fault.HTML: BROKEN,
    Fault.EMPTY: BROKEN,
    Fault.WRONG_TYPE: BROKEN,
    Fault.GZIP: BROKEN,
    Fault.GZIP_CUT: BROKEN,
    Fault.FILTERED: ANSWERED,
    Fault.MISSING_USAGE: UNCOUNTED,
    Fault.USAGE_NOT_AN_OBJECT: UNCOUNTED,
    Fault.USAGE_NEGATIVE: UNCOUNTED,
    Fault.USAGE_STRING: UNCOUNTED,
    Fault.USAGE_FLOAT: UNCOUNTED,
    Fault.USAGE_BOOLEAN: UNCOUNTED,
    Fault.USAGE_HUGE: UNCOUNTED,
    Fault.USAGE_CACHE_STRING: UNCOUNTED,
    Fault.USAGE_CACHE_ABOVE_INPUT: UNCOUNTED,
    Fault.OUTPUT_ABOVE: ANSWERED,
    Fault.INPUT_ABOVE: ANSWERED,
    Fault.INFORMED: ANSWERED,
    Fault.TWICE: ANSWERED,
    Fault.TWO_LENGTHS: BROKEN,
    Fault.CHUNK_EXTENSIONS: ANSWERED,
    Fault.BAD_CHUNK: BROKEN,
    Fault.ENDLESS: BROKEN,
    Fault.ENDLESS_EVENT: BROKEN,
    Fault.ENDLESS_HEAD: BROKEN,
}

_STREAMED = {
    Fault.WRONG_TYPE: ANSWERED,  # what an event stream calls itself is not looked at
}
_OPENAI_STREAMED = {
    Fault.ENDS_BEFORE_USAGE: UNCOUNTED,  # the text was whole by then
}


def law(fault: Fault, api: str, *, streamed: bool) -> Law:
    """The law for a fault, as one interface shows it."""
    if streamed:
        if api != "anthropic" and fault in _OPENAI_STREAMED:
            return _OPENAI_STREAMED[fault]
        if fault in _STREAMED:
            return _STREAMED[fault]
    return LAWS[fault]
