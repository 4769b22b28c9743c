"""Waiting for what ends: nothing is left under way, and no failure is told that whoever waited did not ask for."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from sandbox import cancellation
from sandbox.cancellation import cancel_and_wait, in_own_thread, until_ended


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


async def test_a_function_in_its_own_thread_answers_or_fails_and_is_not_waited_for_once_cancelled() -> None:
    assert await in_own_thread(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(lambda: 1 // 0)
    let_go, ended = threading.Event(), threading.Event()

    def slow() -> None:
        let_go.wait(60)
        ended.set()

    task = asyncio.create_task(in_own_thread(slow))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    let_go.set()
    assert ended.wait(60)


class CancelledLate(Future[int]):
    """A future that is cancelled when its result is already on its way."""

    def set_result(self, result: int) -> None:
        self.cancel()
        super().set_result(result)


async def test_a_cancellation_that_comes_as_a_function_in_its_own_thread_ends_is_no_failure_of_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    monkeypatch.setattr(cancellation, "Future", CancelledLate)
    assert await asyncio.wait_for(in_own_thread(lambda: 5), 60) == 5
    assert failed == []
