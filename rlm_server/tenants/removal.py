"""Stops and removes what a deleted tenant has, also where the server was stopped in the middle of that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from types import TracebackType
from typing import Self

from rlm_server.tenants.tenants import Tenants
from sandbox.cancellation import cancel_and_wait

log = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Before a removal that failed is tried again."""


class Removal:
    """Removals under way. An async context manager: those that are left are done at the next start.

    `steps` are taken one after another with the tenant's name. Each may be taken again.
    """

    def __init__(self, tenants: Tenants, steps: Sequence[Callable[[str], Awaitable[None]]]) -> None:
        self._tenants, self._steps = tenants, steps
        self._removing: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._removing.values()):
            await cancel_and_wait(task)

    def begin(self, tenant: str) -> None:
        """Begin to remove what a tenant has, unless that is under way."""
        if tenant not in self._removing:
            # Nobody pays for it: not whoever made the call that the removal was heard of with.
            task = self._removing[tenant] = asyncio.create_task(self._remove(tenant), context=Context())
            task.add_done_callback(lambda _: self._removing.pop(tenant, None))

    async def ended(self, tenant: str) -> None:
        """Wait until nothing is left of a tenant."""
        task = self._removing.get(tenant)
        if task is not None:
            await asyncio.wait([task])

    async def _remove(self, tenant: str) -> None:
        while True:
            try:
                for step in self._steps:
                    await step(tenant)
                await self._tenants.cleared(tenant)
            except Exception:
                log.exception("what the tenant %s had could not be removed; it is tried again", tenant)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return
