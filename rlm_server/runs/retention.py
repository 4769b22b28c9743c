"""Removes runs that ended so long ago that their tenant keeps them no longer. What they spent stays in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from rlm_server.clock import DAY_MS, now
from rlm_server.contexts.background import UPKEEP_SECONDS
from rlm_server.runs.journal import Journal

log = logging.getLogger(__name__)

USUAL = ""
"""Nobody's name: what holds for it holds for every tenant that was told nothing else."""
AT_ONCE = 100
"""Runs of one tenant that are looked up at once."""


class Retention:
    """Removes old runs. `days` tells for how long a tenant keeps a run after its end, 0 for ever.

    `delete` forgets a run that has ended.
    """

    def __init__(
        self, journal: Journal, days: Callable[[str], float], delete: Callable[[str], Awaitable[None]]
    ) -> None:
        self._journal, self._days, self._delete = journal, days, delete
        self._shortest = UPKEEP_SECONDS

    def pause(self) -> float:
        """Return the seconds until there may be more to remove."""
        return self._shortest

    async def remove_old(self) -> int:
        """Remove what is old now, and return how many runs that were."""
        self._shortest, removed = UPKEEP_SECONDS, 0
        for tenant in (USUAL, *await self._journal.tenants()):
            days = self._days(tenant)
            if days:
                self._shortest = min(self._shortest, days * DAY_MS / 1000)
                before = now() - round(days * DAY_MS)
                removed += await forget_ended(self._journal, tenant, before, self._delete)
        if removed:
            log.info("%d runs were forgotten, which had ended long enough ago", removed)
        return removed


async def forget_ended(journal: Journal, tenant: str, before: int, delete: Callable[[str], Awaitable[None]]) -> int:
    """Forget a tenant's runs that ended before a time (Unix milliseconds), and return how many that were."""
    removed = 0
    while runs := await journal.ended_before(tenant, before, AT_ONCE):
        for run in runs:
            await delete(run)
        removed += len(runs)
    return removed
