"""What can go wrong with one request to a model provider."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """One way to go wrong, by the name it is ordered with. `words` say what happens."""

    words: str

    def __new__(cls, name: str, words: str) -> Fault:
        made = str.__new__(cls, name)
        made._value_, made.words = name, words
        return made

    # Refused with an error status.
    BAD_REQUEST = "400", "the request is not accepted"
    BAD_KEY = "401", "the key is not accepted"
    FORBIDDEN = "403", "the key may not do this"
    NO_SUCH_MODEL = "404", "there is no such model"
    REQUEST_TIMEOUT = "408", "a gateway gave up; billed"
    RATE_LIMITED = "429", "too many requests"
    RATE_LIMITED_WITH_HINT = "429-hint", "too many requests, and a header that says when to come again"
    RATE_LIMITED_IN_HTML = "429-html", "too many requests, said in HTML"
    RATE_LIMITED_CUT = "429-cut", "too many requests; the connection ends in the middle of saying so"
    RATE_LIMITED_STALLING = "429-stall", "too many requests; the rest of the body never comes"
    RATE_LIMITED_ENDLESS = "429-endless", "too many requests; the body never ends"
    SERVER_ERROR = "500", "the server failed after the work was done; billed"
    BAD_GATEWAY = "502", "a gateway failed after the work was done; billed"
    UNAVAILABLE = "503", "the service is not available"
    GATEWAY_TIMEOUT = "504", "a gateway gave up while the work was done; billed"
    OVERLOADED = "529", "the service is overloaded"
    TOO_LONG = "too-long", "the prompt is longer than the model takes"
    NO_CREDIT = "no-credit", "the key has no credit left"
    REFUSED = "refused", "the prompt is not allowed by a filter"
    REDIRECT = "redirect", "the answer is elsewhere"

    # In time, or not. All below is billed, unless it says otherwise.
    SLOW = "slow", "the answer takes a moment"
    DRIP = "drip", "the answer comes byte by byte"
    STALL = "stall", "no answer comes"
    STALL_INSIDE = "stall-inside", "half of an answer comes"
    LATE = "late", "the answer is sent when the client has given up"

    # The connection.
    RESET = "reset", "the connection is reset before the request is read; not billed"
    HANG_UP = "hang-up", "the connection ends before the first byte of an answer"
    CLOSES = "closes", "the answer is whole; then the connection is closed without a word"
    CUT_HEAD = "cut-head", "the connection ends among the headers"
    CUT = "cut", "the connection ends in the middle, between two events"
    CUT_EVENT = "cut-event", "the connection ends in the middle of an event"
    CUT_BEFORE_USAGE = "cut-before-usage", "the connection ends just before the usage"
    CUT_AFTER_USAGE = "cut-after-usage", "the connection ends after the usage, just before the end"
    ENDS_EARLY = "ends-early", "the answer ends in order, but in the middle"
    ENDS_BEFORE_USAGE = "ends-before-usage", "the answer ends in order, but just before the usage"

    # Whole, and not what was asked for.
    ERROR_INSIDE = "error-inside", "a success that holds an error"
    NONSENSE = "nonsense", "broken JSON"
    NOT_AN_OBJECT = "not-an-object", "JSON of another shape"
    DEEP = "deep", "JSON nested without sense"
    NOT_UNICODE = "not-unicode", "bytes that are no UTF-8"
    NOT_A_STRING = "not-a-string", "the text of the answer is a number"
    HTML = "html", "a web page"
    EMPTY = "empty", "no content at all"
    WRONG_TYPE = "wrong-type", "a whole answer that calls itself plain text"
    GZIP = "gzip", "a whole answer, compressed though nobody asked for that"
    GZIP_CUT = "gzip-cut", "half of a compressed answer"
    FILTERED = "filtered", "the model declines to answer"

    # What the usage says.
    MISSING_USAGE = "missing-usage", "no usage is reported"
    USAGE_NOT_AN_OBJECT = "usage-not-an-object", "the usage is a list"
    USAGE_NEGATIVE = "usage-negative", "the output is below zero"
    USAGE_STRING = "usage-string", "the output is a string"
    USAGE_FLOAT = "usage-float", "the output is a fraction"
    USAGE_BOOLEAN = "usage-boolean", "the output is true"
    USAGE_HUGE = "usage-huge", "the output has thirty digits"
    USAGE_CACHE_STRING = "usage-cache-string", "the input read from the cache is a string"
    USAGE_CACHE_ABOVE_INPUT = "usage-cache-above-input", "more input was read from the cache than there was"
    OUTPUT_ABOVE = "output-above", "more output is billed, and reported, than max_tokens"
    INPUT_ABOVE = "input-above", "more input is billed, and reported, than the prompt has bytes"

    # The letter of HTTP/1.1.
    INFORMED = "informed", "an informational response goes before the answer"
    TWICE = "twice", "headers are repeated"
    TWO_LENGTHS = "two-lengths", "two content lengths that differ"
    CHUNK_EXTENSIONS = "chunk-extensions", "chunks have extensions, and trailers follow"
    BAD_CHUNK = "bad-chunk", "the size of a chunk is no number"

    # Without end.
    ENDLESS = "endless", "the answer goes on and on"
    ENDLESS_EVENT = "endless-event", "one event, or one word of an answer, goes on and on"
    ENDLESS_HEAD = "endless-head", "the headers go on and on"


BY_NAME = {str(fault): fault for fault in Fault}

STATUS = {
    Fault.BAD_REQUEST: 400,
    Fault.BAD_KEY: 401,
    Fault.FORBIDDEN: 403,
    Fault.NO_SUCH_MODEL: 404,
    Fault.REQUEST_TIMEOUT: 408,
    Fault.RATE_LIMITED: 429,
    Fault.RATE_LIMITED_WITH_HINT: 429,
    Fault.RATE_LIMITED_IN_HTML: 429,
    Fault.RATE_LIMITED_CUT: 429,
    Fault.RATE_LIMITED_STALLING: 429,
    Fault.RATE_LIMITED_ENDLESS: 429,
    Fault.SERVER_ERROR: 500,
    Fault.BAD_GATEWAY: 502,
    Fault.UNAVAILABLE: 503,
    Fault.GATEWAY_TIMEOUT: 504,
    Fault.OVERLOADED: 529,
    Fault.TOO_LONG: 400,
    Fault.NO_CREDIT: 429,
    Fault.REFUSED: 400,
    Fault.REDIRECT: 307,
}
"""The faults that are an error status."""

_FAILED_AFTER_THE_WORK = {Fault.REQUEST_TIMEOUT, Fault.SERVER_ERROR, Fault.BAD_GATEWAY, Fault.GATEWAY_TIMEOUT}

NOT_BILLED = frozenset(STATUS) - _FAILED_AFTER_THE_WORK | {Fault.RESET}
"""Faults that the fake does not bill."""

WAITING = frozenset(
    {
        Fault.STALL,
        Fault.STALL_INSIDE,
        Fault.LATE,
        Fault.ENDLESS,
        Fault.ENDLESS_EVENT,
        Fault.ENDLESS_HEAD,
        Fault.RATE_LIMITED_STALLING,
        Fault.RATE_LIMITED_ENDLESS,
    }
)
"""Faults that last until the client gives up."""
