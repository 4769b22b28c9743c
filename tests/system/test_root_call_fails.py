"""A run survives each failure of its own model that may pass, and its books say what the operator knows of the bill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.prices.table import Price, Rates
from tests.fake_provider.server import Bill, FakeProvider, Fault
from tests.servers import Served, Server
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import Ended, code

SUCCEEDED, FAILED, EXHAUSTED = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_EXHAUSTED,
)

ONCE = [
    [Fault.SERVER_ERROR],
    [Fault.BAD_GATEWAY],
    [Fault.CUT],
    [Fault.STALL],
    [Fault.RATE_LIMITED] * 2,
    [Fault.UNAVAILABLE] * 2,
]
"""What a run must survive, once at each of its root calls."""

UNBILLED = {Fault.RATE_LIMITED, Fault.UNAVAILABLE}
TOKENS = 10_000  # above what is answered whole, so that a stream can be cut
PRICE = Price(Rates(input=2_000_000_000, output=10_000_000_000))

THREE_TURNS = code("n = globals().get('n', 0) + 1\nprint(n)\nif n == 3: FINAL('done')")
WITH_CHILD = code("if budget()['depth']: print(rlm_query('What of it?')); FINAL('parent')\nelse: FINAL('child')")


@asynccontextmanager
async def asked(server: Served, answer: str, **settings: Any) -> AsyncIterator[tuple[Server, FakeProvider]]:
    """A server whose one model is the fake provider's, which says this to everything."""
    async with FakeProvider(answer=answer).serving() as fake:
        model = {"base_url": fake.url + "/v1", "input_usd_per_million": 2, "output_usd_per_million": 10}
        given = {
            "models": {"fake": model},
            "model": "fake",
            "sub_model": "fake",
            "call_seconds": 3,
            "root_tokens": TOKENS,
        }
        async with server(None, **(given | settings)) as served:
            yield served, fake


def cost(bill: Bill) -> int:
    return PRICE.cost(bill.usage)


def check_books(served: Server, ended: Ended, bills: list[Bill], failure_cost: str) -> None:
    """What the run spent is what was billed, but for what failed: that is what the operator's table says."""
    held = rows(
        served.data_dir, "SELECT * FROM hold WHERE run = ? AND model <> '' AND state = 'posted'", ended.run.run_id
    )
    doubtful = [hold for hold in held if hold["input"] is None]
    answered = sum(hold["actual_nano_usd"] for hold in held if hold["input"] is not None)
    assert answered == sum(cost(bill) for bill in bills if bill.fault is None)
    assert len(doubtful) == (0 if failure_cost == "none" else sum(bill.fault is not None for bill in bills))
    for hold in doubtful:
        if failure_cost == "full":
            assert hold["actual_nano_usd"] == hold["nano_usd"]
        else:
            tokens = hold["actual_tokens"]
            assert (tokens, hold["actual_nano_usd"]) == (hold["tokens"] - TOKENS, 2_000 * tokens)
    spent = answered + sum(hold["actual_nano_usd"] for hold in doubtful)
    assert ended.run.spent.nano_usd == spent
    told = sum(reply.spent.nano_usd for reply in ended.bodies("model_replied"))
    assert told + sum(call.call.spent.nano_usd for call in ended.bodies("call_finished")) == spent
    check_story(ended)
    check_settled(served.data_dir)


@pytest.mark.parametrize("failure_cost", ["full", "input", "none"])
async def test_a_run_survives_one_failure_at_each_of_its_root_calls_and_counts_it_as_the_table_says(
    server: Served, failure_cost: str
) -> None:
    async with asked(server, THREE_TURNS, failure_costs={"fake": failure_cost}) as (served, fake):
        for number, faults in enumerate(ONCE):
            for before in range(3) if failure_cost == "full" else [number % 3]:
                fake.billed.clear()
                fake.faults.extend([*[None] * before, *faults])
                ended = await served.caller.ask()
                assert (ended.run.state, ended.run.answer) == (SUCCEEDED, "done"), (
                    faults,
                    before,
                    ended.run.end_message,
                )
                check_books(served, ended, fake.billed, failure_cost)
                failed = [call.call.error for call in ended.bodies("call_finished")]
                again = [guard.detail for guard in ended.bodies("guard") if guard.kind == run_pb2.GUARD_KIND_ROOT_CALL]
                assert len(failed) == len(again) == (0 if faults[0] in UNBILLED else 1), (
                    "those are the broker's to repeat"
                )
                assert all("attempt 1 of 5 failed" in detail for detail in again)


@pytest.mark.parametrize("faults", ONCE, ids=str)
async def test_a_childs_model_is_asked_again_too(server: Served, faults: list[Fault]) -> None:
    async with asked(server, WITH_CHILD, default_depth=1, max_depth=1) as (served, fake):
        fake.faults.extend([None, *faults])
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer, ended.printed) == (SUCCEEDED, "parent", "child\n")
        check_books(served, ended, fake.billed, "full")


@pytest.mark.parametrize("faults", ONCE, ids=str)
async def test_the_last_word_is_asked_for_again_too(server: Served, faults: list[Fault]) -> None:
    async with asked(server, "Nothing is known.", max_turns=1) as (served, fake):
        fake.faults.extend([None, *faults])
        ended = await served.caller.ask()
        assert (ended.run.state, ended.run.answer) == (EXHAUSTED, "Nothing is known.")
        check_settled(served.data_dir)


async def test_a_model_that_goes_on_failing_ends_the_run_after_so_many_attempts_all_of_them_told(
    server: Served,
) -> None:
    async with asked(server, THREE_TURNS, root_attempts=3) as (served, fake):
        fake.chance = lambda: Fault.SERVER_ERROR
        ended = await served.caller.ask()
        assert ended.run.state == FAILED
        assert "the model fake did not answer: gone: the provider failed (status 500)" in ended.run.end_message
        assert fake.requests == 3
        check_books(served, ended, fake.billed, "full")
        calls = ended.bodies("call_finished")
        assert [call.call.error for call in calls] == ["gone: the provider failed (status 500)"] * 3
        assert len({call.call.call_id for call in calls}) == 3


async def test_what_no_second_attempt_can_mend_is_not_tried_again(server: Served) -> None:
    async with asked(server, THREE_TURNS) as (served, fake):
        for fault in (Fault.BAD_KEY, Fault.BAD_REQUEST, Fault.TOO_LONG, Fault.REFUSED):
            fake.requests = 0
            fake.faults.append(fault)
            ended = await served.caller.ask()
            assert (ended.run.state, fake.requests) == (FAILED, 1)
            assert ended.run.spent.nano_usd == 0


async def test_no_attempt_goes_beyond_the_budget(server: Served) -> None:
    async with asked(server, THREE_TURNS, root_tokens=1_000) as (served, fake):
        fake.chance = lambda: Fault.SERVER_ERROR
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=50_000_000))
        assert ended.run.state == EXHAUSTED
        assert ended.run.end_message.startswith("budget.nano_usd")
        assert 1 <= fake.requests < 5
        assert ended.run.spent.nano_usd <= 50_000_000
        check_settled(served.data_dir)


async def test_no_attempt_goes_beyond_the_deadline(server: Served) -> None:
    async with asked(server, THREE_TURNS, root_attempts=100, wall_seconds=4) as (served, fake):
        fake.chance = lambda: Fault.SERVER_ERROR
        ended = await served.caller.ask()
        assert ended.run.state in (FAILED, EXHAUSTED)
        assert fake.requests < 10
        check_settled(served.data_dir)
