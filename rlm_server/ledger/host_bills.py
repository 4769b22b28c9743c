"""Bills for what the server's own process does for tenants outside of turns: every so often, on their own accounts."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rlm_server.database.engine import DatabaseError
from rlm_server.ledger.amounts import Amounts
from rlm_server.ledger.errors import AccountClosed, AccountUnknown, BudgetError
from rlm_server.ledger.holds import Hold
from rlm_server.ledger.ledger import Ledger
from rlm_server.shares.host_time import HostTimes
from sandbox.cancellation import cancel_and_wait, run_to_completion

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
"""Between two rounds of bills."""

LEAST_SECONDS = 0.1
"""A tenant is billed once so much is owed; less is kept for a later round, and is lost at the server's end."""

MOST_OWED_SECONDS = 1.0
"""Who owes more, because there is no room in a budget, is served no more until it is paid: see `HostBills.check`."""


class HostBills:
    """Posts what tenants owe. An async context manager: leaving it posts the last of it."""

    def __init__(
        self, ledger: Ledger, host_times: HostTimes, of_worker: Callable[[str], float] = lambda _: 0.0
    ) -> None:
        """`of_worker` returns the seconds that a tenant's worker took besides code since it was last asked."""
        self._ledger, self._host_times, self._of_worker = ledger, host_times, of_worker
        self._refused: dict[str, BudgetError] = {}
        self._billing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._billing = asyncio.create_task(self._bill_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._billing is not None:
            await cancel_and_wait(self._billing)
        await run_to_completion(self.bill())

    def check(self, tenant: str) -> None:
        """Refuse a tenant who owes more than may be owed.

        Raises:
            BudgetError: the one with which its last bill was refused.
        """
        refusal = self._refused.get(tenant)
        if refusal is not None and self._host_times.of(tenant).seconds > MOST_OWED_SECONDS:
            raise refusal

    async def _bill_all(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await run_to_completion(self.bill())

    async def bill(self) -> None:
        """Post what every tenant owes, in whole milliseconds. What has no room in its budget is still owed."""
        self._host_times.share_out()
        for tenant in self._host_times.tenants():
            self._host_times.spend_elsewhere(tenant, self._of_worker(tenant))
            if self._host_times.of(tenant).seconds >= LEAST_SECONDS:
                await self._post(tenant)

    async def _post(self, tenant: str) -> None:
        owed = self._host_times.of(tenant)
        seconds = owed.take()
        paid = 0
        try:
            paid = await self._pay(tenant, int(seconds * 1000))
        except (AccountUnknown, AccountClosed):
            seconds = 0.0  # nobody is left to pay
        except DatabaseError as error:
            log.warning("what was done for a tenant is billed later, as the database failed: %s", error)
        finally:
            owed.owe(seconds - paid / 1000)

    async def _pay(self, tenant: str, asked: int) -> int:
        """Post so many milliseconds, or as many as there is room for, and return how many."""
        left = (await self._ledger.left(tenant)).cpu_ms
        amounts = Amounts(cpu_ms=asked if left is None or left <= 0 else min(asked, left))
        hold = Hold("host_" + secrets.token_hex(16), tenant, amounts, "", "", tenant, "", "")
        try:
            await self._ledger.charge(hold)
        except BudgetError as error:
            self._refused[tenant] = error
            return 0
        if amounts.cpu_ms == asked:
            self._refused.pop(tenant, None)
        return amounts.cpu_ms
