"""What is kept of a detached turn for whoever watches it: the newest, bounded in bytes; what is left out is said."""

from __future__ import annotations

import asyncio

import pytest

from rlm_server.repl.events import CodeFinished, Printed
from rlm_server.sessions import turn_log
from rlm_server.sessions.happenings import EVENT_BYTES, LeftOut
from rlm_server.sessions.turn_log import Told, TurnLog
from rlm_server.shares.held import Held, TooMuchHeld
from tests.runs.stage import a_turn

TENANT = "acme"
RESULT = CodeFinished(a_turn())
QUIET = 60.0


def text(number: int) -> Printed:
    return Printed("stdout", f"{number:04}" * 100)


async def read(log: TurnLog, first: int = 0) -> list[Told]:
    return [told async for told in log.each(first, QUIET)]


def filled(held: Held, count: int) -> TurnLog:
    log = TurnLog(TENANT, held, "code")
    for number in range(1, count + 1):
        log.put(text(number))
    log.put(RESULT)
    log.end()
    return log


async def test_what_happens_is_numbered_and_read_from_any_number_by_any_number_of_readers() -> None:
    log = filled(Held(lambda _: 1 << 30), 3)
    whole = [Told(text(number), number) for number in (1, 2, 3)] + [Told(RESULT, 4)]
    assert await read(log) == await read(log, 1) == whole
    assert await read(log, 3) == whole[2:]
    assert await read(log, 4) == whole[3:]
    assert await read(log, 5) == await read(log, 1 << 60) == []


@pytest.mark.parametrize("bound", ["of the turn", "of the tenant"])
async def test_the_newest_is_kept_and_what_is_left_out_is_said_where_it_was(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_log, "LOG_BYTES", 20_000 if bound == "of the turn" else 1 << 30)
    held = Held(lambda _: 1 << 30 if bound == "of the turn" else 20_000)
    log = filled(held, 100)
    assert held.of(TENANT) < 21_000
    left_out, *rest = await read(log)
    assert isinstance(left_out.happening, LeftOut)
    assert left_out.happening.events == left_out.sequence == 101 - len(rest)
    assert rest == [Told(text(number), number) for number in range(left_out.sequence + 1, 101)] + [Told(RESULT, 101)]
    from_later = await read(log, left_out.sequence)
    assert from_later[0] == Told(LeftOut(1, 0), left_out.sequence)
    assert from_later[1:] == rest


async def test_where_the_tenant_may_have_no_more_memory_the_result_comes_all_the_same() -> None:
    held = Held(lambda _: 2_000)
    log = TurnLog(TENANT, held, "code")
    held.take(TENANT, 2_000 - held.of(TENANT), "something else")
    log.put(text(1))
    log.put(RESULT)
    log.end()
    assert await read(log) == [Told(LeftOut(1, 0), 1), Told(RESULT, 2)]
    with pytest.raises(TooMuchHeld):
        TurnLog(TENANT, held, "code")


async def test_a_log_that_is_closed_has_its_result_alone_and_holds_nothing() -> None:
    held = Held(lambda _: 1 << 30)
    log = filled(held, 3)
    assert held.of(TENANT) > 3 * EVENT_BYTES
    log.close()
    assert held.of(TENANT) == 0
    assert await read(log) == [Told(LeftOut(3, 0), 3), Told(RESULT, 4)]


async def test_readers_are_told_what_comes_and_that_nothing_comes() -> None:
    log = TurnLog(TENANT, Held(lambda _: 1 << 30), "code")
    async with asyncio.timeout(30):
        quiet = log.each(0, 0.0)
        assert await anext(quiet) == Told(None)
        readers = [asyncio.create_task(read(log)) for _ in range(3)]
        await asyncio.sleep(0)
        log.put(text(1))
        assert await anext(quiet) == Told(text(1), 1)
        log.put(RESULT)
        log.end()
        for reader in readers:
            assert await reader == [Told(text(1), 1), Told(RESULT, 2)]


async def test_why_a_turn_failed_is_raised_after_what_happened_to_every_reader() -> None:
    log = TurnLog(TENANT, Held(lambda _: 1 << 30), "code")
    log.put(text(1))
    log.end(MemoryError("no room"))
    for _ in range(2):
        each = log.each(0, QUIET)
        assert await anext(each) == Told(text(1), 1)
        with pytest.raises(MemoryError, match="no room"):
            await anext(each)
