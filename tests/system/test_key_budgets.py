"""A key that is bound to a customer's account spends from there alone, and finds nothing of what others pay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import run_pb2, session_pb2, types_pb2

from rlm_server.api import key_account
from tests.servers import Served, Server
from tests.system.accountant import TALK, Accountant, entry_filter
from tests.system.books import check_customers, check_settled
from tests.system.operator import Operator, operating
from tests.system.stage import Caller, refusal
from tests.system.test_customers import DAY, Keeper, dollars, window

DENIED, NOT_FOUND = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND


pytestmark = pytest.mark.usefixtures("unbilled")


@dataclass
class Stage:
    served: Server
    operator: Operator
    keeper: Keeper
    """With a key of the whole tenant."""
    ann: Caller
    """With a key of the account `ann`, which is under `team`."""
    secret: str
    """That key."""


@asynccontextmanager
async def bound(server: Served, **settings: Any) -> AsyncIterator[Stage]:
    async with server(TALK, **settings) as served, operating(served) as operator:
        keeper = Keeper(served.caller)
        await keeper.create("team")
        await keeper.create("ann", parent_id="team", limit=dollars(5))
        await keeper.create("bob", parent_id="team")
        key = await operator.key("development", account_id="ann")
        assert key.key.account_id == "ann"
        yield Stage(served, operator, keeper, served.another(key.secret), key.secret)


async def test_runs_and_sessions_of_a_bound_key_are_charged_to_its_account_or_one_under_it(server: Served) -> None:
    async with bound(server) as stage:
        mine = Keeper(stage.ann)
        assert (await mine.create("ann.laptop")).parent_id == "ann"
        assert (await mine.create("ann.phone", parent_id="ann.laptop")).parent_id == "ann.laptop"
        for asked, paid in (("", "ann"), ("ann", "ann"), ("ann.phone", "ann.phone")):
            assert (await stage.ann.ask(account_id=asked)).run.account_id == paid
            session = await stage.ann.open_session(account_id=asked)
            assert (await stage.ann.turn(session, "print(llm_query('a'))")).printed
            request = session_pb2.GetSessionRequest(session_id=session)
            told = await stage.ann.sessions.GetSession(request, metadata=stage.ann.metadata)
            assert told.session.account_id == paid
            await stage.ann.delete(session)
        usage = {row.key for row in (await Accountant(stage.served.caller).usage(by=4)).rows}
        assert usage == {"ann", "ann.phone"}
        check_customers(stage.served.data_dir)
        check_settled(stage.served.data_dir)


async def test_a_bound_key_stops_at_its_accounts_limit_and_other_keys_go_on(server: Served) -> None:
    async with bound(server) as stage:
        await stage.keeper.update("ann", "limit", limit=types_pb2.Budget(call_count=1))
        ended = (await stage.ann.ask()).run
        assert (ended.state, ended.end_reason) == (run_pb2.RUN_STATE_EXHAUSTED, run_pb2.END_REASON_BUDGET_CALLS)
        assert (await stage.served.caller.ask()).run.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_bound_key_names_no_other_account_whether_it_is_there_or_not(server: Served) -> None:
    async with bound(server) as stage:
        await stage.keeper.create("default")
        mine, accountant, ann = Keeper(stage.ann), Accountant(stage.ann), stage.ann
        for account in ("team", "bob", "nobody", "development", "default"):
            calls: list[Awaitable[Any]] = [
                ann.create(account_id=account),
                ann.open_session(account_id=account),
                mine.create("new", parent_id=account),
                mine.update(account, "limit", limit=dollars(9)),
                mine.close(account),
                mine.list(parent_id=account),
                mine.runs(account_id=account),
                accountant.usage(filter=entry_filter(account_id=account)),
                accountant.entries(filter=entry_filter(account_id=account)),
                accountant.export(filter=entry_filter(account_id=account)),
            ]
            for call in calls:
                said = await refusal(call)
                assert (said.code, said.reason, said.said) == (DENIED, "KEY_BOUND", {"account": "ann"}), account
            assert (await refusal(accountant.budget(account))).code is NOT_FOUND
        assert [one.account_id for one in (await stage.keeper.list()).accounts] == ["default", "team"]


async def test_a_bound_key_cannot_change_its_own_account(server: Served) -> None:
    async with bound(server) as stage:
        mine = Keeper(stage.ann)
        for change in (mine.update("ann", "limit", limit=dollars(9)), mine.close("ann")):
            said = await refusal(change)
            assert (said.code, said.reason) == (DENIED, "KEY_BOUND")
        await mine.create("ann.laptop")
        assert (await mine.update("ann.laptop", "limit", limit=dollars(9))).limit == dollars(9)
        assert (await mine.close("ann.laptop")).closed
        own = (await Accountant(stage.ann).budget()).account
        assert (own.account_id, own.limit, own.closed) == ("ann", dollars(5), False)


async def test_a_bound_key_sees_the_windows_of_its_account_and_none_of_those_above(server: Served) -> None:
    async with bound(server, day_budget_usd=9) as stage:
        for account in ("team", "ann"):
            await stage.keeper.update(account, "window_limits", window_limits=[window(DAY, dollars(3))])
        session = await stage.ann.open_session()
        for caller, seen in ((stage.ann, ["ann"]), (stage.served.caller, ["development", "team", "ann"])):
            for account in ("ann", session):
                found = await Accountant(caller).budget(account)
                assert [one.account_id for one in found.windows] == seen


async def test_a_bound_key_finds_nothing_that_others_pay(server: Served) -> None:
    async with bound(server) as stage:
        whole, ann = stage.served.caller, stage.ann
        theirs = [(await whole.ask(account_id=account)).run.run_id for account in ("", "team", "bob")]
        sessions = [await whole.open_session(account_id=account) for account in ("", "team", "bob")]
        own = (await ann.ask()).run.run_id
        mine, accountant = Keeper(ann), Accountant(ann)
        assert [run.run_id for run in (await mine.runs()).runs] == [own]
        assert {entry.run_id for entry in (await accountant.entries()).entries} == {own}
        assert {row.key for row in (await accountant.usage(by=3)).rows} == {own}
        assert [one.account_id for one in (await mine.list()).accounts] == []
        calls: list[Callable[[str], Awaitable[Any]]] = [
            ann.get, ann.cancel, ann.delete_run, ann.ended, ann.nodes, ann.read_answer, accountant.budget,
            lambda run: accountant.entries(filter=entry_filter(run_id=run)),
            lambda run: accountant.usage(filter=entry_filter(node_id=run)),
        ]  # fmt: skip
        for run in theirs:
            for call in calls:
                assert (await refusal(call(run))).code is NOT_FOUND
        for session in sessions:
            for turn in (ann.turn(session, "llm_query('a')"), ann.delete(session), accountant.budget(session)):
                assert (await refusal(turn)).code is NOT_FOUND
        assert (await whole.get(own)).account_id == "ann"


async def test_a_request_of_one_key_is_not_answered_with_what_another_pays_for(server: Served) -> None:
    async with bound(server) as stage:
        run = await stage.served.caller.create("What?", request_id="one")
        session = await stage.served.caller.open_session(request_id="one")
        for call in (stage.ann.create("What?", request_id="one"), stage.ann.open_session(request_id="one")):
            assert (await refusal(call)).reason == "REQUEST_ID_REUSED"
        assert (await stage.served.caller.create("What?", request_id="one")).run_id == run.run_id
        assert await stage.served.caller.open_session(request_id="one") == session


async def test_a_key_is_bound_to_an_account_that_is_there_and_stays_so_after_a_restart(
    server: Served, tmp_path: Path
) -> None:
    kept = {"data_dir": tmp_path / "kept"}
    async with bound(server, **kept) as stage:
        await stage.keeper.create("default")
        await stage.keeper.create("gone")
        await stage.keeper.close("gone")
        wrong = {"nobody": "NOT_FOUND", "gone": "ACCOUNT_CLOSED", "default": "INVALID_FIELD"}
        for account, reason in wrong.items():
            said = await refusal(stage.operator.key("development", account_id=account))
            assert said.reason == reason, account
        said = await refusal(stage.operator.key("", kind=2, account_id="ann"))
        assert (said.reason, said.fields) == ("INVALID_FIELD", ["account_id"])
        listed = {key.key_id: key.account_id for key in await stage.operator.keys("development")}
        assert sorted(listed.values()) == ["", "ann"]
        secret = stage.secret
    async with server(TALK, **kept) as served:
        again = served.another(secret)
        assert (await again.ask()).run.account_id == "ann"
        assert (await refusal(again.create(account_id="bob"))).reason == "KEY_BOUND"
        await Keeper(served.caller).close("team")
        assert (await refusal(again.create())).reason == "ACCOUNT_CLOSED"


def test_the_kinds_of_accounts_that_a_key_covers_go_by_whole_ids() -> None:

    key_account.bind("team/ann")
    covered = {path: key_account.covers(path) for path in ("team/ann", "team/ann/x", "team/anna", "team", "", "ann")}
    assert covered == {"team/ann": True, "team/ann/x": True, "team/anna": False, "team": False, "": False, "ann": False}
    key_account.bind("")
    assert all(map(key_account.covers, covered))
