"""What happens in a turn whose caller does not read is bounded in bytes; what is left out is said; the result comes."""

from __future__ import annotations

import pytest

from rlm_server.contexts.passages import Passage
from rlm_server.ledger import Amounts
from rlm_server.repl.events import CallFinished, CallTraced, CodeFinished, FinishedCall, Printed, UntoldCalls
from rlm_server.sessions import happenings as module
from rlm_server.sessions.happenings import EVENT_BYTES, WAITING_BYTES, Happening, Happenings, LeftOut
from rlm_server.shares.held import Held
from tests.runs.stage import a_turn

TENANT = "acme"
RESULT = CodeFinished(a_turn("printed"))
CALL = CallFinished(FinishedCall("call_1", "small", Amounts()), 3)


async def read(happenings: Happenings) -> list[Happening | None]:
    happenings.end()
    return [happening async for happening in happenings.each()]


async def test_what_happens_is_read_in_its_order_and_held_until_then() -> None:
    held = Held(lambda _: 1 << 30)
    happenings = Happenings(TENANT, held)
    happened: list[Happening] = [Printed("stdout", "a"), CALL, Printed("stderr", "b"), UntoldCalls(1, 2), RESULT]
    for happening in happened:
        happenings.put(happening)
    assert held.of(TENANT) > 3 * EVENT_BYTES
    assert await read(happenings) == happened
    assert held.of(TENANT) == 0


async def test_calls_that_nobody_reads_are_left_out_beyond_a_bound_and_output_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 100_000)
    held = Held(lambda _: 1 << 30)
    happenings = Happenings(TENANT, held)
    for _ in range(10_000):
        happenings.put(CALL)
    happenings.put(CallTraced("call_1", (Passage(0, 0, 64, 0),) * 64, more=False))
    happenings.put(Printed("stdout", "x" * 200_000))
    assert held.of(TENANT) < 100_000 + 201_000
    happenings.put(RESULT)
    *calls, printed, left_out, result = await read(happenings)
    assert set(calls) == {CALL}
    assert 100 < len(calls) < 200
    assert (printed, result) == (Printed("stdout", "x" * 200_000), RESULT)
    assert left_out == LeftOut(10_001 - len(calls), 0)


async def test_output_is_left_out_where_the_tenant_may_have_no_more_memory() -> None:
    happenings = Happenings(TENANT, Held(lambda _: 2_000))
    for text in ("first", "x" * 1_000, "y" * 1_000):
        happenings.put(Printed("stdout", text))
    happenings.put(RESULT)
    assert await read(happenings) == [Printed("stdout", "first"), LeftOut(0, 2_000), RESULT]


async def test_room_that_was_read_is_room_again() -> None:
    held = Held(lambda _: WAITING_BYTES)
    happenings = Happenings(TENANT, held)
    each = happenings.each()
    for _ in range(100_000):
        happenings.put(CALL)
        assert await anext(each) == CALL
    happenings.put(RESULT)
    assert await anext(each) == RESULT


async def test_what_nobody_is_going_to_read_is_let_go_and_nothing_more_is_taken() -> None:
    held = Held(lambda _: 1 << 30)
    happenings = Happenings(TENANT, held)
    happenings.put(CALL)
    happenings.close()
    happenings.put(CALL)
    assert held.of(TENANT) == 0
