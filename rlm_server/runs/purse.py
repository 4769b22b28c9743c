"""What is left of a node's budget: read ahead while its code runs, and used where nothing was spent meanwhile."""

from __future__ import annotations

import asyncio
import time

from rlm_server.database.engine import DatabaseError
from rlm_server.ledger import Ledger, Limit
from rlm_server.repl.owed import Owed

FRESH_SECONDS = 0.05
"""So old what was read ahead may be: others of the tenant may have spent since."""


class Purse:
    """A node's account. What its model's last reply cost is written into the books while the code already runs.

    `owed` is what else its calls cost that is not in the books yet.
    """

    def __init__(self, ledger: Ledger, account: str, owed: Owed) -> None:
        self._ledger, self._account, self._owed = ledger, account, owed
        self._ahead: asyncio.Task[tuple[Limit, float]] | None = None

    def replied(self, settling: asyncio.Task[bool] | None) -> None:
        """Note a reply, and what writes its cost into the books. What is left is read as soon as that is done."""
        self._ahead = None
        if settling is not None:
            self._owed.add(settling)
            self._ahead = asyncio.create_task(self._read_after(settling))
            self._owed.add(self._ahead, (DatabaseError,))

    async def _read_after(self, settling: asyncio.Task[bool]) -> tuple[Limit, float]:
        await asyncio.wait((settling,))
        began = time.monotonic()
        return await self._ledger.left(self._account), began

    def spending(self) -> None:
        """Note that more may be spent from now on. What was read ahead counts no more."""
        self._ahead = None

    async def settled(self) -> None:
        """Wait until all is in the books, or cannot be. What was read ahead counts no more."""
        self._ahead = None
        await self._owed.settled()

    async def left(self) -> Limit:
        """Return what is left, with the last reply paid.

        Raises:
            DatabaseError: it cannot be read.
        """
        ahead = self._ahead
        if ahead is not None:
            if not ahead.done():
                await asyncio.wait((ahead,))
            left, began = ahead.result()
            if time.monotonic() - began < FRESH_SECONDS:
                return left
        await self.settled()
        return await self._ledger.left(self._account)
