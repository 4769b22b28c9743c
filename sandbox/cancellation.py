"""Awaiting what must come to its end, such as writing a file or settling a hold, while being cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
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


async def in_own_thread(function: Callable[[], _T]) -> _T:
    """Run a function that cannot be stopped in a thread of its own, which nobody waits for once this is cancelled."""
    ended: Future[_T] = Future()

    def run() -> None:
        if not ended.set_running_or_notify_cancel():  # from here on a cancellation leaves it alone
            return
        try:
            answer = function()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(answer)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(ended)
