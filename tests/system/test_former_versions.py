"""What a server of a former version left is all there after an upgrade, on both databases, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import budget_pb2, budget_pb2_grpc, run_pb2
from rlm.v1.types_pb2 import Amounts

from rlm_server.backup.backup import restore
from rlm_server.config.settings import Settings
from rlm_server.database.snapshot import snapshot
from tests.former.versions import FORMER, Former
from tests.servers import Served
from tests.system.context_calls import ContextCalls
from tests.system.stage import Caller, Play, code, refusal


async def told_of(caller: Caller) -> dict[str, Any]:
    """What a server tells a tenant, in the words in which a former one told it."""
    budgets: Any = budget_pb2_grpc.BudgetServiceStub(caller.channel)

    async def spent(account: str) -> list[int]:
        asked = budget_pb2.GetBudgetRequest(account_id=account)
        return amounts((await budgets.GetBudget(asked, metadata=caller.metadata)).account.posted)

    entries = await budgets.ListEntries(budget_pb2.ListEntriesRequest(page_size=1000), metadata=caller.metadata)
    accounts = await budgets.ListAccounts(budget_pb2.ListAccountsRequest(), metadata=caller.metadata)
    runs = await caller.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=caller.metadata)
    contexts = (await ContextCalls(caller).list()).contexts
    return {
        "spent": {account: await spent(account) for account in ["", *(one.account_id for one in accounts.accounts)]},
        "holds": [entry.hold_id for entry in entries.entries if entry.model],
        "runs": {run.run_id: await run_of(caller, run.run_id) for run in runs.runs},
        "contexts": {
            context.context_id: {
                "name": context.name,
                "texts": [
                    (await ContextCalls(caller).read(context.context_id, document, 0, 1000)).text
                    for document in range(context.document_count)
                ],
            }
            for context in contexts
        },
    }


async def run_of(caller: Caller, run_id: str) -> dict[str, Any]:
    run = await caller.get(run_id)
    return {
        "state": run_pb2.RunState.Name(run.state),
        "question": run.question,
        "answer": run.answer,
        "spent": amounts(run.spent),
        "context": run.context_id,
        "events": [event.WhichOneof("body") async for event in caller.watch(run_id)],
    }


def amounts(spent: Amounts) -> list[int]:
    return [spent.nano_usd, spent.token_count, spent.call_count]


@pytest.mark.parametrize("former", FORMER, ids=lambda former: f"schema {former.schema}")
async def test_what_a_former_version_left_is_all_there_and_goes_on(
    server: Served, database_at: str | Path, tmp_path: Path, former: Former
) -> None:
    of_postgres = {"database_url": database_at} if isinstance(database_at, str) else {}
    await restore(Settings.load(data_dir=tmp_path, **of_postgres), former.backup)
    with snapshot(database_at) as found:
        assert found.schema == former.schema
    async with server(Play(code("FINAL(len(context))")), data_dir=tmp_path, **of_postgres) as served:
        for told in former.told.values():
            caller = served.another(told["key"])
            assert await told_of(caller) == told["told"]
            for context_id, context in told["told"]["contexts"].items():
                texts = context["texts"]
                run = (await caller.ask(context_id=context_id)).run
                assert run.answer == str(len(texts) if len(texts) > 1 else len(texts[0]))
            for key in told["revoked"]:
                assert (await refusal(served.another(key).get("run_1"))).code is grpc.StatusCode.UNAUTHENTICATED
