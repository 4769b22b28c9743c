"""Waiting for what ends: nothing is left under way, and no failure is told that whoever waited did not ask for."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from sandbox.cancellation import cancel_and_wait, until_ended


async def failing(after: asyncio.Event) -> None:
    try:
        await after.wait()
    finally:
        raise ValueError("it failed")


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_failure_of_what_was_waited_for_is_not_told_as_one_that_nobody_looked_at(cancelled: bool) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    going_on = asyncio.Event()
    task = asyncio.create_task(failing(going_on))
    await asyncio.sleep(0)
    if cancelled:
        await cancel_and_wait(task)
    else:
        going_on.set()
        await until_ended(task)
    assert task.done()
    del task
    gc.collect()
    assert told == []


async def test_whoever_is_cancelled_meanwhile_still_waits_to_the_end() -> None:
    going_on = asyncio.Event()
    task = asyncio.create_task(failing(going_on))
    waiting = asyncio.create_task(until_ended(task))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    going_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert task.done()
