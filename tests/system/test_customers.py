"""A tenant gives its customers budgets, runs are charged to them, and what each spent can be told."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from rlm.v1 import budget_pb2, run_pb2, session_pb2, types_pb2

from tests.servers import Served
from tests.system.accountant import TALK, Accountant, entry_filter
from tests.system.books import check_customers, check_settled, rows
from tests.system.operator import operating
from tests.system.stage import USD, Caller, Play, Refusal, code, eventually, refusal

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
DAY, MINUTE = budget_pb2.WINDOW_SPAN_DAY, budget_pb2.WINDOW_SPAN_MINUTE


def dollars(number: float) -> types_pb2.Budget:
    return types_pb2.Budget(nano_usd=int(number * USD))


def window(span: Any, limit: types_pb2.Budget) -> budget_pb2.WindowLimit:
    return budget_pb2.WindowLimit(span=span, limit=limit)


class Keeper:
    """Keeps a tenant's accounts."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.budgets: Any = Accountant(caller).stub

    async def create(self, id: str, request_id: str = "", **terms: Any) -> budget_pb2.Account:
        account = budget_pb2.Account(account_id=id, **terms)
        request = budget_pb2.CreateAccountRequest(account=account, request_id=request_id)
        answer: budget_pb2.Account = (await self.budgets.CreateAccount(request, metadata=self.caller.metadata)).account
        return answer

    async def update(self, id: str, *paths: str, resets: Any = (), **terms: Any) -> budget_pb2.Account:
        request = budget_pb2.UpdateAccountRequest(
            account=budget_pb2.Account(account_id=id, **terms), update_mask=FieldMask(paths=paths), reset_windows=resets
        )
        answer: budget_pb2.Account = (await self.budgets.UpdateAccount(request, metadata=self.caller.metadata)).account
        return answer

    async def close(self, id: str) -> budget_pb2.Account:
        request = budget_pb2.CloseAccountRequest(account_id=id)
        answer: budget_pb2.Account = (await self.budgets.CloseAccount(request, metadata=self.caller.metadata)).account
        return answer

    async def list(self, **asked: Any) -> budget_pb2.ListAccountsResponse:
        request = budget_pb2.ListAccountsRequest(**asked)
        answer: budget_pb2.ListAccountsResponse = await self.budgets.ListAccounts(
            request, metadata=self.caller.metadata
        )
        return answer

    async def runs(self, **asked: Any) -> run_pb2.ListRunsResponse:
        request = run_pb2.ListRunsRequest(**asked)
        answer: run_pb2.ListRunsResponse = await self.caller.runs.ListRuns(request, metadata=self.caller.metadata)
        return answer


pytestmark = pytest.mark.usefixtures("unbilled")


async def test_a_deleted_tenant_leaves_of_its_customers_what_they_spent_and_no_names_labels_or_requests(
    server: Served, tmp_path: Path
) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with server(TALK, **kept) as served, operating(served) as operator:
        acme, mine = await served.tenant("acme"), Keeper(served.caller)
        for keeper in (Keeper(acme), mine):
            limits = [window(DAY, dollars(4))]
            await keeper.create("bob", "once", name="Bob", labels={"plan": "gold"}, window_limits=limits)
            await keeper.caller.ask(account_id="bob", labels={"team": "a"}, request_id="run")
        spent = await served.running.ledger.balance("customer:acme:bob")
        assert spent.posted.nano_usd > 0
        await operator.delete("acme", force=True)
        tables = ("label", "window_limit", "request")
        left = {table: len(rows(kept["data_dir"], f"SELECT 1 FROM {table}")) for table in tables}
        assert left == {"label": 2, "window_limit": 1, "request": 2}
        names = rows(kept["data_dir"], "SELECT tenant, name FROM customer ORDER BY tenant")
        assert [tuple(row.values()) for row in names] == [("acme", ""), ("development", "Bob")]
        statement = await served.running.ledger.statement("acme", "bob")
        assert statement
        assert (statement.closed, statement.balance.posted) == (True, spent.posted)
        (bob,) = (await mine.list()).accounts
        assert (bob.closed, dict(bob.labels)) == (False, {"plan": "gold"})


async def test_a_run_and_a_session_are_charged_to_their_customer_and_everything_tells_who_paid(server: Served) -> None:
    async with server(TALK, tenant_budget_usd=10) as served:
        keeper, accountant = Keeper(served.caller), Accountant(served.caller)
        made = await keeper.create(
            "acme", limit=dollars(5), name="Acme", labels={"plan": "gold"}, window_limits=[window(DAY, dollars(4))]
        )
        assert (made.kind, made.parent_id, made.left) == (
            budget_pb2.ACCOUNT_KIND_CUSTOMER, "development", budget_pb2.Allowance(nano_usd=4 * USD),
        )  # fmt: skip
        await keeper.create("bob", parent_id="acme")
        run = (await served.caller.ask(account_id="bob", labels={"team": "a"})).run
        assert (run.account_id, dict(run.labels)) == ("bob", {"team": "a"})
        session = await served.caller.open_session(account_id="acme", labels={"team": "b"})
        await served.caller.turn(session, "llm_query('a')")
        request = session_pb2.GetSessionRequest(session_id=session)
        told = (await served.caller.sessions.GetSession(request, metadata=served.caller.metadata)).session
        assert (told.account_id, dict(told.labels)) == ("acme", {"team": "b"})
        spent = await served.caller.delete(session)
        await served.caller.ask()
        own = await accountant.budget("acme")
        assert own.account.posted.nano_usd == run.spent.nano_usd + spent.nano_usd
        (day,) = own.windows
        assert (day.account_id, day.posted.nano_usd) == ("acme", own.account.posted.nano_usd)
        by_account = {row.key: row.amounts.nano_usd for row in (await accountant.usage(by=4)).rows}
        assert set(by_account) == {"acme", "bob", "development"}
        assert (by_account["bob"], by_account["acme"]) == (run.spent.nano_usd, spent.nano_usd)
        await served.caller.delete_run(run.run_id)
        usage = (await accountant.usage(by=5, label="team")).rows
        assert {row.key: row.amounts.nano_usd for row in usage if row.key} == {
            "a": run.spent.nano_usd, "b": spent.nano_usd,
        }  # fmt: skip
        entries = (await accountant.entries(filter=entry_filter(account_id="acme"))).entries
        assert {entry.account_id for entry in entries} == {"acme", "bob"}
        (labelled,) = {
            entry.run_id for entry in (await accountant.entries(filter=entry_filter(labels={"team": "b"}))).entries
        }
        assert labelled == session
        check_settled(served.data_dir)
        check_customers(served.data_dir)


async def test_a_customers_limit_ends_its_run_and_no_other(server: Served) -> None:
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        await keeper.create("small", limit=types_pb2.Budget(call_count=1))
        await keeper.create("large")
        ended = (await served.caller.ask(account_id="small")).run
        assert ended.state == run_pb2.RUN_STATE_EXHAUSTED
        assert ended.end_reason == run_pb2.END_REASON_BUDGET_CALLS
        assert "'small'" in ended.end_message
        assert (await served.caller.ask(account_id="large")).run.state == run_pb2.RUN_STATE_SUCCEEDED
        check_settled(served.data_dir)
        check_customers(served.data_dir)


async def test_closing_a_customer_ends_its_runs_with_a_clear_reason(server: Served) -> None:
    closed = asyncio.Event()

    async def waits(_: str) -> str:
        await closed.wait()
        return "ok"

    play = Play(code("print(llm_query('x'))"), code("FINAL(1)"), sub=waits)
    async with server(play) as served:
        keeper = Keeper(served.caller)
        await keeper.create("acme")
        run = await served.caller.create(account_id="acme")
        await eventually(lambda: play.subcalls)
        assert (await keeper.close("acme")).closed
        closed.set()
        ended = (await served.caller.ended(run.run_id)).run
        assert ended.state == run_pb2.RUN_STATE_EXHAUSTED
        assert "account 'acme' was closed" in ended.end_message
        for refused in (served.caller.create(account_id="acme"), served.caller.open_session(account_id="acme")):
            assert (await refusal(refused)).reason == "ACCOUNT_CLOSED"
        check_settled(served.data_dir)
        check_customers(served.data_dir)


async def test_a_limit_that_is_raised_is_in_force_for_a_run_under_way_and_a_lowered_one_too(server: Served) -> None:
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        await keeper.create("acme", limit=dollars(1))
        session = await served.caller.open_session(account_id="acme", budget=dollars(1))
        assert (await served.caller.turn(session, "print(llm_query('a'))")).printed
        await keeper.update("acme", "limit", limit=types_pb2.Budget(nano_usd=1))
        turn = await served.caller.turn(session, "llm_query('b')")
        assert "LimitExceeded" in str(turn.result)
        changed = await keeper.update("acme", "limit", limit=dollars(2))
        assert changed.limit == dollars(2)
        assert (await served.caller.turn(session, "print(llm_query('c'))")).printed


async def test_a_customer_that_is_not_there_is_not_found_by_its_field_or_made_after_the_default(server: Served) -> None:
    async with server(TALK, run_budget_usd=1) as served:
        keeper = Keeper(served.caller)
        said = await refusal(served.caller.create(account_id="new"))
        assert (said.code, said.reason) == (NOT_FOUND, "NOT_FOUND")
        assert said.message.startswith("account_id: ")
        await keeper.create("default", limit=dollars(0.5), labels={"plan": "free"})
        run = (await served.caller.ask(account_id="new")).run
        assert run.budget == dollars(0.5)
        new = (await Accountant(served.caller).budget("new")).account
        assert (new.limit, dict(new.labels), new.posted) == (dollars(0.5), {"plan": "free"}, run.spent)
        said = await refusal(served.caller.create(account_id="default"))
        assert said.code is INVALID


@pytest.mark.parametrize(
    ("id", "terms", "field"),
    [
        ("", {}, "account.account_id"),
        ("a b", {}, "account.account_id"),
        ("x" * 64, {}, "account.account_id"),
        ("run_1", {}, "account.account_id"),
        ("ses_1", {}, "account.account_id"),
        ("node_1", {}, "account.account_id"),
        ("development", {}, "account.account_id"),
        ("a", {"name": "x" * 201}, "account.name"),
        ("a", {"labels": {str(n): "" for n in range(17)}}, "account.labels"),
        ("a", {"labels": {"k": "x" * 64}}, "account.labels"),
        ("a", {"labels": {"": "x"}}, "account.labels"),
        ("a", {"limit": types_pb2.Budget(call_count=-1)}, "account.limit.call_count"),
        ("a", {"window_limits": [window(0, dollars(1))]}, "account.window_limits[0].span"),
        ("a", {"window_limits": [window(DAY, dollars(1))] * 2}, "account.window_limits[1].span"),
        ("a", {"window_limits": [window(MINUTE, dollars(1))]}, "account.window_limits[0].limit"),
        ("a", {"window_limits": [window(DAY, types_pb2.Budget())]}, "account.window_limits[0].limit"),
    ],
)
async def test_an_account_that_cannot_be_is_refused_by_the_name_of_its_field(
    server: Served, id: str, terms: dict[str, Any], field: str
) -> None:
    async with server(TALK) as served:
        said = await refusal(Keeper(served.caller).create(id, **terms))
        assert (said.code, said.fields) == (INVALID, [field])


async def test_accounts_are_listed_in_pages_by_parent_and_labels_and_are_their_tenants_alone(server: Served) -> None:
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        for number in range(5):
            await keeper.create(f"c{number}", labels={"even": str(number % 2 == 0)})
        await keeper.create("under", parent_id="c1")
        first = await keeper.list(page_size=2, labels={"even": "True"})
        rest = await keeper.list(page_size=2, labels={"even": "True"}, page_token=first.next_page_token)
        assert [one.account_id for one in (*first.accounts, *rest.accounts)] == ["c0", "c2", "c4"]
        assert rest.next_page_token == ""
        assert [one.account_id for one in (await keeper.list(parent_id="c1")).accounts] == ["under"]
        assert (await refusal(keeper.list(page_token=first.next_page_token))).code is INVALID
        other = Keeper(await served.tenant("other"))
        assert list((await other.list()).accounts) == []
        assert (await refusal(other.create("x", parent_id="run_1"))).code is NOT_FOUND
        for call in (other.update("c0", "name"), other.close("c0"), other.list(parent_id="c0"),
                     other.create("x", parent_id="c0"), other.runs(account_id="c0")):  # fmt: skip
            assert (await refusal(call)).code is NOT_FOUND
        assert (await other.create("c0")).posted == types_pb2.Amounts()
        assert (await refusal(keeper.create("c0"))).reason == "ACCOUNT_EXISTS"


async def test_a_request_repeated_is_answered_as_before_also_after_a_restart_and_otherwise_refused(
    server: Served,
) -> None:
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        made = await keeper.create("acme", "once", name="first")
        run = await served.caller.create("What?", request_id="again", account_id="acme")
        await served.caller.ended(run.run_id)
        session = await served.caller.open_session(request_id="one")
        assert await served.caller.open_session(request_id="one") == session
        assert await _reused(served.caller.open_session(request_id="one", account_id="acme"))
        await keeper.close("acme")
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        again = await keeper.create("acme", "once", name="first")
        assert (again.account_id, again.closed) == (made.account_id, True)
        assert await _reused(keeper.create("other", "once"))
        repeated = await served.caller.create("What?", request_id="again", account_id="acme")
        assert repeated.run_id == run.run_id
        assert await _reused(served.caller.create("Else?", request_id="again", account_id="acme"))
        assert [one.run_id for one in (await keeper.runs()).runs] == [run.run_id]
        await served.caller.delete_run(run.run_id)
        fresh = await served.caller.create("Else?", request_id="again")
        assert fresh.run_id != run.run_id


async def test_without_a_mask_what_is_set_of_an_account_changes_and_a_star_stands_for_all(server: Served) -> None:
    async with server(TALK) as served:
        keeper = Keeper(served.caller)
        made = await keeper.create("acme", name="first", labels={"a": "b"}, limit=dollars(1))
        assert await keeper.update("acme") == made, "nothing is set"
        assert await keeper.update("acme", resets=[DAY]) == made
        changed = await keeper.update("acme", name="second")
        assert (changed.name, dict(changed.labels), changed.limit) == ("second", {"a": "b"}, dollars(1))
        changed = await keeper.update("acme", "*", limit=dollars(2))
        assert (changed.name, dict(changed.labels), changed.limit) == ("", {}, dollars(2))
        for wrong in ("closed", "labels.a"):
            assert (await refusal(keeper.update("acme", wrong))).fields == ["update_mask"]


async def _reused(call: Any) -> bool:
    said: Refusal = await refusal(call)
    return (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_runs_are_listed_the_newest_first_by_state_label_time_and_payer(server: Served) -> None:
    play = Play(code("FINAL('" + "x" * 3_000 + "')"))
    async with server(play) as served:
        keeper = Keeper(served.caller)
        await keeper.create("acme")
        made = []
        for number in range(5):
            labels = {"team": "a" if number % 2 else "b"}
            account = "acme" if number > 2 else ""
            made.append((await served.caller.ask(str(number), labels=labels, account_id=account)).run)
            await asyncio.sleep(0.002)  # the next is made in another millisecond
        names = [run.run_id for run in reversed(made)]
        first = await keeper.runs(page_size=3)
        rest = await keeper.runs(page_size=3, page_token=first.next_page_token)
        assert [run.run_id for run in (*first.runs, *rest.runs)] == names
        assert rest.next_page_token == ""
        assert all(len(run.answer) <= 1024 and run.answer_size_bytes == 3_000 for run in first.runs)

        async def listed(**asked: Any) -> list[str]:
            return [run.run_id for run in (await keeper.runs(**asked)).runs]

        assert await listed(labels={"team": "a"}) == names[1::2]
        assert await listed(account_id="acme") == names[:2]
        assert await listed(account_id="development") == names[2:]
        assert await listed(states=[run_pb2.RUN_STATE_SUCCEEDED]) == names
        assert await listed(states=[run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_FAILED]) == []
        assert await listed(since=made[3].create_time) == names[:2]
        assert await listed(until=made[3].create_time) == names[2:]
        (run,) = (await keeper.runs(page_size=1)).runs
        whole = await served.caller.get(run.run_id)
        assert _without_texts(run) == _without_texts(whole)
        for wrong in ({"states": [99]}, {"page_token": "x"}, {"labels": {"": ""}}):
            assert (await refusal(keeper.runs(**wrong))).code is INVALID


def _without_texts(run: run_pb2.Run) -> Message:
    for field in ("question", "answer", "cut", "coverage", "answer_schema", "instructions", "sampling", "strategy"):
        run.ClearField(field)
    return run


async def test_a_page_of_accounts_has_less_than_a_mebibyte_and_the_rest_follows(server: Served) -> None:
    labels = {"\N{PILE OF POO}" * 61 + f"{number:02}": "\N{PILE OF POO}" * 63 for number in range(16)}
    async with server(Play("")) as served:
        keeper = Keeper(served.caller)
        ids = [f"c{number:03}" for number in range(150)]
        for id in ids:
            await keeper.create(id, labels=labels)
        first = await keeper.list(page_size=1_000)
        assert first.ByteSize() < 1 << 20
        rest = await keeper.list(page_size=1_000, page_token=first.next_page_token)
        assert [one.account_id for one in (*first.accounts, *rest.accounts)] == ids
        assert rest.next_page_token == ""


@pytest.mark.parametrize(
    "place", ["x", "", "1 run", f"{'9' * 40} run", f"{1:016}  run", "\ud800", "\u0661" * 16 + " run"]
)
async def test_a_token_that_nobody_was_given_is_refused(server: Served, place: str) -> None:
    async with server(Play("")) as served:
        keeper = Keeper(served.caller)
        await keeper.caller.create()
        await keeper.caller.create()
        token = (await keeper.runs(page_size=1)).next_page_token
        name, _ = json.loads(base64.urlsafe_b64decode(token))
        forged = base64.urlsafe_b64encode(json.dumps([name, place]).encode()).decode()
        said = await refusal(keeper.runs(page_token=forged))
        assert (said.code, said.fields) == (INVALID, ["page_token"])
