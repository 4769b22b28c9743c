from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.course import ROWS, Course, Sample
from benchmarks.soak import SAMPLES, report, soaked
from benchmarks.vitals import Vitals
from sandbox.vm.image import Loaded


async def test_a_small_soak_finds_every_answer_right(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "soak.svg"
    soak = await soaked(loaded, sessions=80, live=20, turns=300, minutes=5, progress=lambda _: None)
    report(soak, picture)
    *table, _, drawn, result = capsys.readouterr().out.splitlines()
    found = json.loads(result)
    assert soak.wrong == []
    assert (found["soak_turns"], found["soak_wrong"]) == (300, 0)
    assert (found["live_sessions"], found["hibernated_sessions"]) == (20, 60)
    assert sum(member.total for member in soak.members) == sum(range(300))
    assert len(soak.course.samples) == SAMPLES + 1
    assert sum(len(sample.live_seconds + sample.wake_seconds) for sample in soak.course.samples) >= 300
    assert found["descriptors_end"] <= found["descriptors_start"] + 8
    assert [line for line in table if line.startswith(tuple(name for name, _ in ROWS))] == table[1:]
    assert str(picture) in drawn
    assert "descriptors of the workers" in set(ElementTree.fromstring(picture.read_text()).itertext())


async def test_a_soak_whose_time_is_up_says_how_far_it_came(loaded: Loaded) -> None:
    said = list[str]()
    soak = await soaked(loaded, sessions=4, live=2, turns=10_000, minutes=0, progress=said.append)
    assert soak.course.figures()["soak_turns"] == 0
    assert said[-1] == "time was up after 0 of 10,000 turns"


def test_growth_is_that_of_the_second_half() -> None:
    def held(megabytes: float) -> Vitals:
        return Vitals(megabytes, 0, 0, 0, 100, 0, 1, 0, 0)

    settled = Course([Sample(i, i, held(size), 1) for i, size in enumerate([1, 5, 50, 90, 99, 100, 102, 99, 102, 100])])
    assert settled.growth(lambda sample: sample.memory_mb) == pytest.approx(0)
    assert settled.growth(lambda sample: sample.descriptors) == 0
    assert settled.growth(lambda sample: sample.stored) == 0
    grown = Course([Sample(i, i, held(100 + i), 1) for i in range(11)])
    assert grown.growth(lambda sample: sample.memory_mb) == pytest.approx(100 * 5 / 107.5)
