from __future__ import annotations

import json

import pytest

from benchmarks.soak import soaked
from sandbox.image import Loaded


async def test_a_small_soak_finds_every_answer_right(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    soak = await soaked(loaded, sessions=60, live=20, turns=240, minutes=5, progress=lambda _: None)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert soak.wrong == []
    assert (found["soak_turns"], found["soak_wrong"]) == (240, 0)
    assert (found["live_sessions"], found["hibernated_sessions"]) == (20, 40)
    assert sum(len(member.turns) for member in soak.members) == 240
    assert found["descriptors_end"] <= found["descriptors_start"] + 8
