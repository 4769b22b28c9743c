"""A tenant sees all of its money, to the last nano-dollar, and nothing of another's."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, types_pb2
from rlm_client.durations import milliseconds

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Amounts, By, Hold, Ledger, Limit, Query, Span, Totals
from tests.servers import Served
from tests.system.accountant import TALK, Accountant, entry_filter, spend, stamp, total, units
from tests.system.books import rows
from tests.system.stage import USD, Play, code, refusal

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


# ---- accounts --------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("unbilled")


async def test_the_tenants_budget_says_what_was_spent_and_what_is_left(server: Served) -> None:
    async with server(TALK, tenant_budget_usd=2) as served:
        ended = await served.caller.ask()
        account = (await Accountant(served.caller).budget()).account
        assert account.account_id == "development"
        assert (account.parent_id, account.closed) == ("", False)
        assert account.limit == types_pb2.Budget(nano_usd=2 * USD)
        assert account.posted == ended.run.spent
        assert account.posted.nano_usd > 0
        assert account.posted.token_count == sum(usage.input + usage.output for _, usage in served.provider.billed)
        assert account.posted.cpu_time.ToMilliseconds() > 0
        assert account.pending == account.carved == account.overrun == types_pb2.Amounts()
        assert account.left == budget_pb2.Allowance(nano_usd=2 * USD - account.posted.nano_usd)


async def test_a_run_a_session_and_a_node_have_accounts_of_their_own(server: Served) -> None:
    play = Play(code("rlm_query('child', budget=0.10)", "FINAL('done')"), child=code("FINAL('x')"))
    async with server(play) as served:
        asked = types_pb2.Budget(nano_usd=USD, token_count=500_000, call_count=9, cpu_time=milliseconds(600_000))
        ended = await served.caller.ask(budget=asked)
        accountant = Accountant(served.caller)
        run, child = ended.run.run_id, ended.nodes[1].node_id
        own = (await accountant.budget(run)).account
        assert (own.limit, own.parent_id, own.closed) == (asked, "development", True)
        assert own.posted == ended.run.spent
        under = (await accountant.budget(child)).account
        assert (under.parent_id, under.limit.nano_usd) == (run, USD // 10)
        assert under.posted == ended.nodes[1].spent
        session = await served.caller.open_session(budget=types_pb2.Budget(nano_usd=USD // 2))
        there = (await accountant.budget(session)).account
        assert (there.closed, there.left.nano_usd) == (False, USD // 2)


async def test_what_is_left_is_the_least_that_any_account_above_or_window_leaves(server: Served) -> None:
    async with server(Play(code("FINAL(1)")), tenant_budget_usd=10, day_budget_usd="0.5") as served:
        await served.running.ledger.set_window("development", Span.MONTH, Limit(calls=3))
        session = await served.caller.open_session(budget=types_pb2.Budget(nano_usd=USD))
        accountant = Accountant(served.caller)
        assert (await accountant.budget(session)).account.left == budget_pb2.Allowance(nano_usd=USD // 2, call_count=3)
        await served.caller.turn(session, "llm_query('a')")
        found = await accountant.budget(session)
        spent = found.account.posted
        assert found.account.left == budget_pb2.Allowance(nano_usd=USD // 2 - spent.nano_usd, call_count=2)
        day, month = found.windows
        assert [window.span for window in found.windows] == [
            budget_pb2.WINDOW_SPAN_DAY,
            budget_pb2.WINDOW_SPAN_MONTH,
        ]
        begin, end = day.start_time.ToDatetime(UTC), day.end_time.ToDatetime(UTC)
        assert end - begin == timedelta(days=1)
        assert day.label == f"{begin:%Y-%m-%d}"
        assert begin == begin.replace(hour=0, minute=0, second=0, microsecond=0)
        assert (day.posted, day.limit) == (spent, types_pb2.Budget(nano_usd=USD // 2))
        assert day.left == budget_pb2.Allowance(nano_usd=USD // 2 - spent.nano_usd)
        assert (month.posted, month.left) == (spent, budget_pb2.Allowance(call_count=2))


async def test_another_tenants_accounts_runs_and_nodes_do_not_exist(server: Served) -> None:
    async with server(TALK, day_budget_usd=1) as served:
        run = (await served.caller.ask()).run.run_id
        session = await served.caller.open_session()
        window = rows(served.data_dir, "SELECT id FROM window_account")[0]["id"]
        other = Accountant(await served.tenant("other"))
        mine = Accountant(served.caller)
        for name in (run, session, "development", window, "nothing", "x" * 10_000):
            for call in (other.budget(name), other.usage(filter=entry_filter(run_id=name))):
                assert (await refusal(call)).code is NOT_FOUND, name
            for asked in (entry_filter(run_id=name), entry_filter(node_id=name)):
                assert (await refusal(other.entries(filter=asked))).code is NOT_FOUND, name
                assert (await refusal(other.export(filter=asked))).code is NOT_FOUND, name
        for name in (window, "other", "nothing"):
            said = await refusal(mine.budget(name))
            assert (said.code, said.reason) == (NOT_FOUND, "NOT_FOUND")
            assert "google.rpc.ResourceInfo" in said.details
        assert (await other.budget()).account.posted == types_pb2.Amounts()
        assert [window.posted for window in (await other.budget()).windows] == [types_pb2.Amounts()]
        assert list((await other.entries()).entries) == list((await other.usage()).rows) == []
        assert len((await other.export()).splitlines()) == 1
        assert [chunk.last_number async for chunk in other.chunks()] == [0]


async def test_without_a_key_nothing_is_told(server: Served) -> None:
    async with server(TALK) as served:
        stranger = Accountant(served.another(None))
        for call in (stranger.budget(), stranger.usage(), stranger.entries(), stranger.export()):
            assert (await refusal(call)).code is grpc.StatusCode.UNAUTHENTICATED


async def test_code_can_ask_for_all_that_is_left(server: Served) -> None:
    async with server(Play(code("import json; FINAL(json.dumps(budget()))"))) as served:
        ended = await served.caller.ask(
            budget=types_pb2.Budget(nano_usd=USD, call_count=9, cpu_time=milliseconds(600_000))
        )
        told = json.loads(ended.run.answer)
        assert told["calls"] == 7, "one is kept for a closing answer"
        assert 0 < told["cpu_seconds"] < 600
        assert told["tokens"] is None


# ---- entries and usage -----------------------------------------------------------------------------------------------


async def test_entries_and_usage_add_up_to_the_account(server: Served) -> None:
    async with server(TALK) as served:
        ended = [await served.caller.ask(f"Question {number}?") for number in range(2)]
        accountant = Accountant(served.caller)
        posted = (await accountant.budget()).account.posted
        entries = await accountant.everything(page_size=3)
        assert total([entry.amounts for entry in entries]) == posted
        numbers = [entry.number for entry in entries]
        assert numbers == sorted(set(numbers))
        assert {entry.run_id for entry in entries} == {one.run.run_id for one in ended}
        for entry in entries:
            assert all(spent <= held for spent, held in zip(units(entry.amounts), units(entry.held), strict=True))
            assert not entry.ambiguous
            assert bool(entry.model) == entry.HasField("usage") == bool(entry.amounts.call_count)
            assert bool(entry.price_version) == bool(entry.model)
        for by in (budget_pb2.USAGE_GROUPING_DAY, budget_pb2.USAGE_GROUPING_MODEL, budget_pb2.USAGE_GROUPING_RUN):
            found = (await accountant.usage(by=by)).rows
            assert total([row.amounts for row in found]) == posted
            assert sum(row.entry_count for row in found) == len(entries)
            assert sum(row.usage.input_count + row.usage.output_count for row in found) == posted.token_count
        by_run = {row.key: row.amounts for row in found}
        assert by_run == {one.run.run_id: one.run.spent for one in ended}


async def test_entries_can_be_asked_for_by_what_they_are_of(server: Served) -> None:
    play = Play(code("rlm_query('child', budget=0.10)", "FINAL('done')"), child=code("FINAL('x')"))
    async with server(play) as served:
        await served.caller.ask()
        ended = await served.caller.ask()
        accountant, run, child = Accountant(served.caller), ended.run.run_id, ended.nodes[1].node_id
        everything = await accountant.everything()

        async def numbers(**asked: Any) -> list[int]:
            return [entry.number for entry in await accountant.everything(filter=entry_filter(**asked))]

        def those(true: Any) -> list[int]:
            return [entry.number for entry in everything if true(entry)]

        assert await numbers(run_id=run) == those(lambda entry: entry.run_id == run)
        assert await numbers(node_id=child) == those(lambda entry: entry.node_id == child)
        assert await numbers(run_id=run, model="play") == those(lambda entry: entry.run_id == run and entry.model)
        assert await numbers(model="") == those(lambda entry: not entry.model)
        assert await numbers(model="nobody") == await numbers(ambiguous_only=True) == []
        third = everything[2]
        assert await numbers(after_number=third.number) == those(lambda entry: entry.number > third.number)
        at = third.time.ToDatetime(UTC)
        assert await numbers(since=stamp(at)) == those(lambda entry: entry.time.ToDatetime(UTC) >= at)
        assert await numbers(until=stamp(at)) == those(lambda entry: entry.time.ToDatetime(UTC) < at)
        assert await numbers(since=stamp(at), until=stamp(at)) == []
        soon = at + timedelta(microseconds=1)
        assert await numbers(since=stamp(soon)) == those(lambda entry: entry.time.ToDatetime(UTC) > at)
        assert await numbers(until=stamp(soon)) == those(lambda entry: entry.time.ToDatetime(UTC) <= at)


async def test_what_is_in_doubt_is_told_apart(server: Served) -> None:
    async with server(TALK) as served:
        await spend(served, "development", 3)
        await spend(served, "development", 2, doubtful=True)
        accountant = Accountant(served.caller)
        (row,) = (await accountant.usage(by=budget_pb2.USAGE_GROUPING_MODEL)).rows
        assert (row.entry_count, row.ambiguous_entry_count) == (5, 2)
        assert row.ambiguous_amounts == types_pb2.Amounts(nano_usd=2000, token_count=20, call_count=2)
        assert row.amounts == types_pb2.Amounts(nano_usd=2003, token_count=41, call_count=5)
        assert row.usage == budget_pb2.TokenUsage(
            input_count=15, output_count=6, cache_read_count=3, cache_write_count=3, reasoning_count=3
        )
        doubtful = await accountant.everything(filter=entry_filter(ambiguous_only=True))
        assert [entry.amounts.nano_usd for entry in doubtful] == [1000, 1000]
        assert all(entry.ambiguous and not entry.HasField("usage") for entry in doubtful)


async def test_pages_join_without_gap_or_repetition_while_more_is_posted(server: Served) -> None:
    async with server(TALK) as served:
        await spend(served, "development", 7)
        accountant = Accountant(served.caller)
        first = await accountant.entries(page_size=5)
        await spend(served, "development", 4, model="other")
        rest = await accountant.entries(page_size=1000, page_token=first.next_page_token)
        assert rest.next_page_token == ""
        assert [*first.entries, *rest.entries] == await accountant.everything(page_size=1000)
        for number in range(5):
            await spend(served, "development", 1, model=f"model-{number}")
        keys, token = [], ""
        while True:
            page = await accountant.usage(by=budget_pb2.USAGE_GROUPING_MODEL, page_size=2, page_token=token)
            assert len(page.rows) <= 2
            keys += [row.key for row in page.rows]
            token = page.next_page_token
            if not token:
                break
        assert keys == ["model-0", "model-1", "model-2", "model-3", "model-4", "other", "play"]


async def test_a_token_is_good_for_its_own_list_alone(server: Served) -> None:
    async with server(TALK) as served:
        await spend(served, "development", 3)
        await spend(served, "development", 3, model="other")
        mine, other = Accountant(served.caller), Accountant(await served.tenant("other"))
        entries = (await mine.entries(page_size=1)).next_page_token
        usage = (await mine.usage(by=budget_pb2.USAGE_GROUPING_MODEL, page_size=1)).next_page_token
        assert entries
        assert usage
        calls: list[Awaitable[object]] = [
            mine.entries(page_token=usage),
            mine.entries(page_token=entries, filter=entry_filter(model="play")),
            other.entries(page_token=entries),
            mine.usage(page_token=entries),
            mine.usage(page_token=usage),
            other.usage(page_token=usage, by=budget_pb2.USAGE_GROUPING_MODEL),
            *[mine.entries(page_token=token) for token in ("x", "====", "W" * 1999, "W1tb" * 400, "é", "e30=")],
        ]
        for call in calls:
            said = await refusal(call)
            assert (said.code, said.fields) == (INVALID, ["page_token"])


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": Timestamp(seconds=-1)}, "filter.since"),
        ({"until": Timestamp(seconds=-1)}, "filter.until"),
        ({"since": Timestamp(seconds=1 << 50)}, "filter.since"),
        ({"since": Timestamp(nanos=-1)}, "filter.since"),
        ({"until": Timestamp(nanos=1_000_000_000)}, "filter.until"),
        ({"since": Timestamp(seconds=2), "until": Timestamp(seconds=1)}, "filter.until"),
        ({"after_number": -1}, "filter.after_number"),
        ({"after_number": 1 << 62}, "filter.after_number"),
        ({"model": "m" * 201}, "filter.model"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused_by_name(
    server: Served, asked: dict[str, Any], field: str
) -> None:
    async with server(TALK) as served:
        accountant, wrong = Accountant(served.caller), entry_filter(**asked)
        for call in (accountant.usage, accountant.entries, accountant.export):
            said = await refusal(call(filter=wrong))
            assert (said.code, said.reason, said.fields) == (INVALID, "INVALID_FIELD", [field])


async def test_what_is_not_offered_is_refused_by_name(server: Served) -> None:
    async with server(TALK) as served:
        accountant = Accountant(served.caller)
        for call, field in (
            (accountant.usage(by=99), "by"),
            (accountant.export(format=99), "format"),
            (accountant.entries(page_size=-1), "page_size"),
            (accountant.usage(page_size=-1), "page_size"),
        ):
            said = await refusal(call)
            assert (said.code, said.fields) == (INVALID, [field])


async def test_both_databases_tell_the_same(database_at: str | Path) -> None:
    async with await Database.open(database_at, MIGRATIONS) as database:
        ledger = Ledger(database)
        for tenant in ("one", "two"):
            await ledger.open_account(tenant, tenant=tenant, parent=None, limit=Limit(nano_usd=10_000))
            await ledger.open_account(f"run-{tenant}", tenant=tenant, parent=tenant, limit=Limit(calls=5))
            await ledger.set_window(tenant, Span.DAY, Limit(nano_usd=9_000))
            for number, model in enumerate(("b", "B", "a", "Ä", "")):
                name = f"{tenant}-{number}"
                hold = Hold(name, f"run-{tenant}", Amounts(100, 10, 1), model, "", tenant, f"run-{tenant}", "")
                await ledger.reserve(hold, deadline=float("inf"))
                await ledger.dispatch(name)
                await ledger.post_in_full(name)
        found = await ledger.statement("one", "run-one")
        assert found is not None
        assert (found.left, found.parent, found.closed) == (Limit(nano_usd=8_500, calls=0), "one", False)
        assert found.windows == await ledger.windows("one")
        assert await ledger.statement("two", "run-one") is None
        assert await ledger.totals() == Totals(Amounts(1000, 100, 10), Amounts())
        rows = await ledger.usage(Query("one"), By.MODEL)
        assert [row.key for row in rows] == ["", "B", "a", "b", "Ä"]
        assert [row.doubtful for row in rows] == [Amounts(), *[Amounts(100, 10, 1)] * 4]
        assert [await ledger.last_entry(tenant) for tenant in ("one", "two", "none")] == [5, 10, 0]
