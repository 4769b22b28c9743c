"""The server's log: one line an event, as text or as JSON, of which nothing from outside can make two.

What a caller or its code says is in no line. An error's own words are left out as well, because they may repeat it: a
line has the error's type and where it was raised.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

MAX_MESSAGE = 1_000
"""Characters of a line's message; what is longer is cut."""
MAX_TOLD = 200
"""Characters of a value that is told besides."""
_WORD = re.compile(r"[A-Za-z0-9._:/+-]+")
MAX_FRAMES = 40
"""Places of each error that are told: the last ones."""
MAX_CAUSES = 5
"""Errors of a chain that are told, the last one first."""

log = logging.getLogger(__name__)


class TextLine(logging.Formatter):
    """Writes a record as one line of text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = _fields(record)
        failure = f" {_quoted(fields['error'])}" if "error" in fields else ""
        failure += "".join(f" {name}={_word(value)}" for name, value in _told(record).items())
        return f"{fields['time']} {fields['level']} {_plain(fields['logger'])} {_quoted(fields['message'])}{failure}"


class JsonLine(logging.Formatter):
    """Writes a record as one JSON object: `time`, `level`, `logger`, `message`, `error` where there was one, and
    what else is told, such as of a call."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(_told(record) | _fields(record))  # all but ASCII is escaped


def set_up(level: int, *, as_json: bool, calls: bool = True) -> None:
    """Have everything logged to the standard error, a line each; of `calls` one for each that has ended."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if as_json else TextLine())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("rlm_server.calls").setLevel(logging.INFO if calls else logging.WARNING)
    logging.captureWarnings(True)


def tell_of_lost_failures(loop: asyncio.AbstractEventLoop) -> None:
    """Have failures that nobody waits for logged by their type, without the tasks and arguments they stand in."""

    def handle(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        log.error("a failure that nobody waited for", exc_info=error if isinstance(error, BaseException) else None)

    loop.set_exception_handler(handle)


def _fields(record: logging.LogRecord) -> dict[str, str]:
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit their format
        message = str(record.msg)
    fields = {
        "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z",
        "level": record.levelname,
        "logger": record.name,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
    }
    error = record.exc_info[1] if record.exc_info else None
    return fields | ({"error": _failure(error)} if error is not None else {})


def _told(record: logging.LogRecord) -> dict[str, str]:
    """What a record says besides its message, by name: each value is bounded."""
    told = getattr(record, "told", {})
    return {name: str(value)[:MAX_TOLD] for name, value in told.items()}


def _word(value: str) -> str:
    """Return a value as one word, in quotes where it is not one."""
    return value if _WORD.fullmatch(value) else _quoted(value)


def _failure(error: BaseException) -> str:
    """Tell an error and its causes: types and places, and what the system said, but no words of the error's own."""
    told = []
    for one in islice(_chain(error), MAX_CAUSES):
        frames = traceback.extract_tb(one.__traceback__)[-MAX_FRAMES:]
        places = " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
        said = f" ({errno.errorcode.get(one.errno or 0, one.errno)})" if isinstance(one, OSError) else ""
        told.append(f"{type(one).__module__}.{type(one).__qualname__}{said} at {places or 'an unknown place'}")
    return "; caused by ".join(told)


def _chain(error: BaseException | None) -> Any:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _quoted(text: str) -> str:
    """Return a text in quotes, all of whose control characters, and of whatever else is not to be seen, are escaped."""
    return repr(text)


def _plain(name: str) -> str:
    return name if name.isprintable() else repr(name)
