"""Hears of every change to tenants and keys, whoever made it: this server, or a command on its machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rlm_server.database.engine import DatabaseError
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.open_calls import OpenCalls
from rlm_server.tenants.tenants import Tenants
from rlm_server.tenants.terms import Terms
from sandbox.cancellation import cancel_and_wait

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks for changes. A call looks too, as it comes."""
USE_SECONDS = 60.0
"""Between two times that the use of keys is written down."""


class Watch:
    """Keeps `terms` and the calls under way as tenants and keys are in the database.

    An async context manager: what it was told until then is in force when it is entered. `changed` is called with
    each tenant whose terms were changed, `leaving` with each that was deleted and has something left.
    """

    def __init__(
        self,
        tenants: Tenants,
        keys: Keys,
        terms: Terms,
        calls: OpenCalls,
        *,
        changed: Callable[[str], None] = lambda _: None,
        leaving: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tenants, self._keys, self._terms, self._calls = tenants, keys, terms, calls
        self._changed, self._leaving = changed, leaving
        self._version = -1
        self._one = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        keys.seen = self.catch_up

    async def __aenter__(self) -> Self:
        await self.look()
        self._looking = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._looking is not None:
            await cancel_and_wait(self._looking)
        try:
            await self._keys.record_use()
        except DatabaseError as failure:
            log.warning("the last use of keys was not written down: %s", failure)

    async def catch_up(self, version: int) -> None:
        """Hear of all changes up to a version."""
        if version > self._version:
            await self.look()

    async def look(self) -> None:
        """Hear of all changes that there are.

        Raises:
            DatabaseError: the database failed.
        """
        async with self._one:
            change = await self._tenants.changed_since(self._version)
            if change.version == self._version:
                return
            revoked = await self._keys.revoked_since(self._version)
            for tenant, own in change.terms.items():
                self._terms.tell(tenant, own)
            if self._version >= 0:  # a command may have gone by other settings than this server's
                here = change.terms.keys() - change.leaving
                told = {tenant: own for tenant, own in change.terms.items() if own is not None and tenant in here}
                for tenant, failure in (await self._tenants.settle_budgets(told)).items():
                    log.warning("the budget of tenant %s stays as it was: %s", tenant, failure)
            self._version = change.version
            for tenant in change.terms:
                self._changed(tenant)
            self._calls.end(keys=revoked, tenants=change.leaving)
            for tenant in change.leaving:
                self._leaving(tenant)

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        write_at = loop.time() + USE_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                if loop.time() >= write_at:
                    write_at = loop.time() + USE_SECONDS
                    await self._keys.record_use()
            except DatabaseError as error:
                log.warning("changes to tenants are heard of later, as the database failed: %s", error)
