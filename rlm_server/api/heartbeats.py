"""Streams that are quiet for long, and how their readers see that they are not broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from sandbox.cancellation import cancel_and_wait

QUIET_SECONDS = 15.0
"""After so long without anything to tell, a stream sends a heartbeat."""

Item = TypeVar("Item")


async def with_heartbeats(
    items: AsyncIterator[Item], quiet_seconds: float = QUIET_SECONDS
) -> AsyncGenerator[Item | None, None]:
    """Yield the items, and None whenever none has come for so long."""
    while True:
        coming = asyncio.ensure_future(anext(items, _END))
        try:
            while not (await asyncio.wait([coming], timeout=quiet_seconds))[0]:
                yield None
        finally:
            if not coming.done():
                await cancel_and_wait(coming)
        item = coming.result()
        if isinstance(item, _End):
            return
        yield item


class _End:
    """What comes after the last item."""


_END = _End()
