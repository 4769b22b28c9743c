"""What goes on beside the calls goes on after a failure, and ends with its owner."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rlm_server.contexts.background import Background, keep_up


async def test_upkeep_goes_on_after_a_round_that_fails_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rounds = 0
    third = asyncio.Event()

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 3:
            raise OSError("the disk is away")
        third.set()

    with caplog.at_level(logging.ERROR):
        async with Background() as background:
            background.start(keep_up("shelves", work, pause_seconds=0))
            await asyncio.wait_for(third.wait(), 30)
    failures = [record for record in caplog.records if "the shelves could not be kept up" in record.message]
    assert len(failures) == 2
    assert "the disk is away" in caplog.text


async def test_tasks_that_are_left_are_cancelled_and_waited_for_at_the_end() -> None:
    steps = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    async with Background() as background:
        tasks = [background.start(work()) for _ in range(2)]
        await asyncio.sleep(0)
    assert steps == ["cleaned up"] * 2
    assert all(task.cancelled() for task in tasks)
