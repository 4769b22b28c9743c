"""Calls of BudgetService, and money that is spent for its tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import budget_pb2, budget_pb2_grpc, types_pb2

from rlm_server.api import responses
from rlm_server.ledger import Amounts, Hold, Usage
from tests.system.stage import Caller, Play, code

TALK = Play(code("print(llm_query_batched(['a', 'b', 'c']))", "FINAL('done')"))
CHUNK = 256 << 10


def units(amounts: types_pb2.Amounts) -> tuple[int, ...]:
    """Amounts as numbers, in the order of the ledger's units."""
    return amounts.nano_usd, amounts.token_count, amounts.call_count, amounts.cpu_time.ToMilliseconds()


class Accountant:
    """Calls the service with a caller's key."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.stub: Any = budget_pb2_grpc.BudgetServiceStub(caller.channel)

    async def budget(self, account_id: str = "") -> budget_pb2.GetBudgetResponse:
        request = budget_pb2.GetBudgetRequest(account_id=account_id)
        found: budget_pb2.GetBudgetResponse = await self.stub.GetBudget(request, metadata=self.caller.metadata)
        return found

    async def usage(self, **asked: Any) -> budget_pb2.ListUsageResponse:
        request = budget_pb2.ListUsageRequest(**asked)
        found: budget_pb2.ListUsageResponse = await self.stub.ListUsage(request, metadata=self.caller.metadata)
        return found

    async def entries(self, **asked: Any) -> budget_pb2.ListEntriesResponse:
        request = budget_pb2.ListEntriesRequest(**asked)
        found: budget_pb2.ListEntriesResponse = await self.stub.ListEntries(request, metadata=self.caller.metadata)
        return found

    async def chunks(self, **asked: Any) -> AsyncIterator[budget_pb2.ExportEntriesResponse]:
        request = budget_pb2.ExportEntriesRequest(**asked)
        async for chunk in self.stub.ExportEntries(request, metadata=self.caller.metadata):
            yield chunk

    async def export(self, **asked: Any) -> str:
        return b"".join([chunk.data async for chunk in self.chunks(**asked)]).decode()

    async def everything(self, **asked: Any) -> list[budget_pb2.Entry]:
        """All pages, of the size asked for, one after another."""
        found: list[budget_pb2.Entry] = []
        token = ""
        while True:
            page = await self.entries(page_token=token, **asked)
            found += page.entries
            token = page.next_page_token
            if not token:
                return found


def total(amounts: list[types_pb2.Amounts]) -> types_pb2.Amounts:
    return responses.amounts(Amounts(*map(sum, zip(*map(units, amounts), strict=True))))


def stamp(time: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(time)
    return made


def entry_filter(**asked: Any) -> budget_pb2.EntryFilter:
    return budget_pb2.EntryFilter(**asked)


async def spend(served: Any, tenant: str, count: int, *, model: str = "play", doubtful: bool = False) -> None:
    """Post so many calls on a tenant's account, without making them."""
    ledger = served.running.ledger
    for number in range(count):
        name = f"call_{tenant}_{model}_{doubtful}_{number}.1"
        hold = Hold(name, tenant, Amounts(1000, 10, 1), model, "prices-1", tenant, tenant, tenant)
        await ledger.reserve(hold, deadline=float("inf"))
        await ledger.dispatch(name)
        if doubtful:
            await ledger.post_in_full(name)
        else:
            await ledger.post(name, Amounts(number, 7, 1), Usage(5, 2, 1, 1, 1))
