"""Work that is done again and again while the server runs, such as removing what is too old."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

UPKEEP_SECONDS = 300.0
"""Between two rounds, at most."""


async def keep_up(what: str, work: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Do the work until cancelled, with a pause after each round. A round that fails is logged, and the next one comes.

    `what` names what is kept up, for the log.
    """
    while True:
        try:
            await work()
        except Exception:
            log.exception("the %s could not be kept up; it is tried again later", what)
        await asyncio.sleep(pause_seconds)
