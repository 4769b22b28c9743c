"""Awaiting what must come to its end, such as writing a file or settling a hold, while being cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def run_to_completion(work: Coroutine[Any, Any, _T]) -> _T:
    """Await work to its end, however often the caller is cancelled; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


async def cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel a task, once, and wait until it has ended, however often the caller is cancelled.

    How it ended is not told as a failure that nobody looked at.
    """
    task.cancel()
    await until_ended(task)


async def until_ended(task: asyncio.Future[Any]) -> None:
    """Wait until a task has ended, as `cancel_and_wait` does, without cancelling it."""
    try:
        await run_to_completion(asyncio.wait((task,)))
    finally:
        if task.done() and not task.cancelled():
            task.exception()  # marks it as retrieved
