"""Settling: resolving a hold though the database fails for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from rlm_server.database.engine import DatabaseClosedError, DatabaseError

log = logging.getLogger(__name__)

SECONDS = 10.0
"""How long a database that fails is asked again."""

PAUSE = 0.05
"""Seconds before it is asked for the second time; doubled each time after."""


async def settle(hold_id: str, resolve: Callable[[], Awaitable[None]]) -> bool:
    """Resolve a hold, and try again where the database fails: what was done is not done twice.

    Returns:
        whether it is resolved. False where the database failed for `SECONDS`, or is closed: the hold then stays as it
        is, which takes its whole amount, and the next start resolves it.
    """
    give_up, pause = time.monotonic() + SECONDS, PAUSE
    while True:
        try:
            await resolve()
        except DatabaseError as error:
            if isinstance(error, DatabaseClosedError) or time.monotonic() + pause >= give_up:
                log.exception("hold %s could not be resolved; the next start will do it", hold_id)
                return False
        else:
            return True
        await asyncio.sleep(pause)
        pause *= 2
