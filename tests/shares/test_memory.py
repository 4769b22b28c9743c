"""What stays in memory is not looked at again and again, and is let go with the server."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

import pytest

from rlm_server.shares.memory import COLLECTED_AFTER, settled
from tests.system.stage import eventually


async def test_what_is_there_is_left_alone_until_the_server_ends_and_modules_are_imported_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needed_later.py").write_text("there = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before, threshold = gc.get_freeze_count(), gc.get_threshold()
    async with settled(["needed_later"]):
        await eventually(lambda: gc.get_freeze_count() > before)
        assert sys.modules["needed_later"].there
        assert gc.get_threshold() == COLLECTED_AFTER != threshold
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == threshold
    del sys.modules["needed_later"]


async def test_an_end_that_comes_at_once_waits_for_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(0.2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with settled(["takes_long"]):
        await asyncio.sleep(0)
    assert "takes_long" in sys.modules
    del sys.modules["takes_long"]
