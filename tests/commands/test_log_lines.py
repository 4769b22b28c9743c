"""A line of the log is one line, and says nothing that a caller or its code said."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable

import pytest

from rlm_server.commands import log_lines
from rlm_server.commands.log_lines import JsonLine, TextLine

EVIL = "one\ntwo\r\x1b[31mred\x00\u2028\u202eback\x85"


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("rlm_server.x", logging.ERROR, "x.py", 1, message, args, info)


def raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("line", [TextLine(), JsonLine()], ids=["text", "JSON"])
def test_a_line_is_one_line_whatever_is_in_it(line: logging.Formatter) -> None:
    def fail() -> None:
        raise ValueError(EVIL)

    for one in (record(EVIL), record("%s", EVIL), record("%d", EVIL), record("x", error=raised(fail))):
        said = line.format(one)
        assert said.isprintable()
        assert len(said.splitlines()) == 1
    assert len(line.format(record("x" * 1_000_000))) < 2_000


@pytest.mark.parametrize("line", [TextLine(), JsonLine()], ids=["text", "JSON"])
def test_an_error_is_told_by_its_type_and_place_and_not_by_its_words(line: logging.Formatter) -> None:
    def inner() -> None:
        raise KeyError("a secret of a tenant")

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise OSError(28, "another secret") from error

    said = line.format(record("it failed", error=raised(outer)))
    assert "secret" not in said
    assert all(word in said for word in ("it failed", "OSError", "ENOSPC", "KeyError", "outer", "inner", __file__))


def test_a_line_of_json_has_its_fields() -> None:
    fields = json.loads(JsonLine().format(record("a %s", "b")))
    assert (fields["level"], fields["logger"], fields["message"]) == ("ERROR", "rlm_server.x", "a b")
    assert fields["time"].endswith("Z")


async def test_a_failure_that_nobody_waits_for_is_told_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    log_lines.tell_of_lost_failures(loop)
    loop.call_exception_handler({"message": "a secret", "exception": ValueError("a secret"), "task": "a secret"})
    (logged,) = caplog.records
    assert "secret" not in TextLine().format(logged)
    assert "ValueError" in TextLine().format(logged)


def test_a_record_of_an_unknown_error_is_taken() -> None:
    one = record("x")
    one.exc_info = (None, None, None)
    assert "'x'" in TextLine().format(one)
    assert sys.exc_info() == (None, None, None)
