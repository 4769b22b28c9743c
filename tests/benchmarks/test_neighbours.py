from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.neighbours import __main__ as neighbours
from benchmarks.neighbours import memory_limit as memory_limits
from benchmarks.neighbours.client import Standing
from benchmarks.neighbours.findings import Findings, Found, disk_unpaid_mb, p99, times_alone
from benchmarks.neighbours.playing import Stage, count_cpu, count_disk
from benchmarks.neighbours.scenarios import SCENARIOS
from benchmarks.neighbours.server import CONTEXT_QUOTA, Database, Looked, Server
from benchmarks.neighbours.victim import MIX

FIGURES = [
    *("victim_p99_x", "server_rss_growth_mb", "disk_growth_mb_unpaid", "attacker_unpaid_cpu_s", "keyless_cpu_share"),
    *("victim_errors", "server_deaths", "worker_deaths_of_others", "stop_s_worst"),
]


def test_every_kind_of_call_is_measured_and_the_last_line_is_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["neighbours", "--only", "small_requests,runs_without_end", "--seconds", "1.5"])
    assert neighbours.main() == 0
    shown = capsys.readouterr()
    *table, result = shown.out.splitlines()
    found = json.loads(result)
    assert list(found) == FIGURES
    assert found["victim_p99_x"] >= 1
    assert (found["server_deaths"], found["worker_deaths_of_others"]) == (0, 0)
    assert found["stop_s_worst"] > 0
    assert {line.split()[0] for line in table if line} >= {*MIX, "scenario", "small_requests", "runs_without_end"}
    assert "the server's memory is limited by" in shown.err


async def test_a_server_that_dies_is_counted_and_the_next_scenario_has_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def killed(_: Stage, server: Server, _things: dict[str, str]) -> None:
        await server.process.kill()

    findings = Findings("nothing")
    with memory_limits.memory_limit(4 << 30) as limit:
        stage = Stage(Database(), limit, 1.0, 0.5, findings, tmp_path)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(Stage, "_stopped", killed)
                died = await stage.play(SCENARIOS["flood_of_get_session"])
            lived = await stage.play(SCENARIOS["flood_of_get_session"])
        finally:
            await stage.close()
    assert died.deaths == 1
    assert died.errors
    assert (lived.deaths, lived.errors) == (0, [])
    assert set(lived.beside) == set(MIX)
    assert lived.calls > 0
    assert lived.stops.keys() == {"thing", "server"}
    assert os.listdir(tmp_path) == []
    assert findings.result()["server_deaths"] == 1


@pytest.mark.parametrize("groups", [memory_limits._GROUPS, ()], ids=["a group where one can be made", "without"])
def test_the_servers_memory_is_limited_and_its_workers_is_not(
    monkeypatch: pytest.MonkeyPatch, groups: tuple[tuple[Path, str], ...]
) -> None:
    monkeypatch.setattr(memory_limits, "_GROUPS", groups)
    greedy = "input(); x = bytearray(200 << 20); print('has it', flush=True)"
    with memory_limits.memory_limit(100 << 20) as limit:
        for released in (False, True):
            with subprocess.Popen(
                [sys.executable, "-c", greedy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                limit.hold(process.pid)
                if released:
                    limit.release(process.pid)
                said, _ = process.communicate(b"\n")
            assert (said == b"has it\n") is released


def test_every_scenario_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["neighbours", "--list"])
    neighbours.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCENARIOS)
    assert all((scenario.prepare.__doc__ or "").endswith(".") for scenario in SCENARIOS.values())


def test_a_scenario_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["neighbours", "--only", "nothing"])
    with pytest.raises(SystemExit):
        neighbours.main()


@pytest.mark.parametrize(
    ("alone_ms", "beside_ms", "fair"),
    [(5, 250, True), (5, 251, False), (79, 250, True), (79, 251, False), (81, 243, True), (81, 250, False)],
)
def test_a_call_is_fair_up_to_three_times_alone_or_where_nobody_would_notice(
    alone_ms: float, beside_ms: float, fair: bool
) -> None:
    assert (times_alone(alone_ms, beside_ms) <= 3) is fair


def test_nothing_is_better_beside_an_attacker_than_alone() -> None:
    assert times_alone(100, 20) == 1


def test_the_percentile_of_few_calls_is_the_longest() -> None:
    assert p99([3.0, 1.0, 2.0]) == 3
    assert p99([float(n) for n in range(1, 201)]) == 198


def test_what_is_paid_for_may_be_written() -> None:
    assert disk_unpaid_mb(8, 0, 0) == 0
    assert disk_unpaid_mb(100, 0, 0) == 92
    assert disk_unpaid_mb(100, 1_000, 10) == 66


def looked(*, cpu_s: float = 0, workers: dict[int, float] | None = None, texts: float = 0, disk: float = 0) -> Looked:
    return Looked(100, cpu_s, {1: 0} if workers is None else workers, texts, disk)


def test_processor_time_is_the_attackers_unless_the_victim_takes_as_much_alone_or_it_was_paid() -> None:
    empty, quiet = looked(cpu_s=1, workers={1: 1, 2: 0.5}), looked(cpu_s=2, workers={1: 2, 2: 0.5})
    before, after = looked(cpu_s=3, workers={1: 2, 2: 1}), looked(cpu_s=10, workers={1: 5, 2: 4, 3: 1.5})
    found = Found("")
    count_cpu(found, (empty, quiet, before, after), 2.0, (Standing(cpu_s=2), Standing(cpu_s=3, held_cpu_s=0.5)), [1])
    assert found.cpu_s == (10 - 3) - 2 * (2 - 1) + (4 - 1) + (1.5 - 0.5)
    assert found.unpaid_cpu_s == found.cpu_s - 1.5


def test_the_disk_is_the_attackers_unless_the_victim_writes_as_much_alone_or_a_quota_is_for_it() -> None:
    quota = CONTEXT_QUOTA / 1e6
    found = Found("")
    looks = (looked(), looked(disk=10), looked(disk=100, texts=quota + 5))
    count_disk(found, looks, 2.0, Standing(stored_mb=3))
    assert found.disk_mb == pytest.approx(quota + 5 + 90)
    assert found.disk_unpaid_mb == pytest.approx(90 - 2 * 10 + 5 - 8 - 3)


def test_the_result_is_the_worst_of_all_scenarios_and_the_sum_of_what_must_not_be() -> None:
    quick = Found("quick", {"read": [0.02]}, ["read: no"], rss_mb=7, cpu_s=2, paid_cpu_s=3, stops={"server": 0.2})
    slow = Found("slow", {"read": [0.5]}, ["read: no"], rss_mb=3, cpu_s=2, paid_cpu_s=1.5, deaths=1)
    strange = Found("strange", cpu_s=2, keyless_seconds=4)
    findings = Findings("nothing", defaultdict(list, read=[0.1]), [quick, slow, strange])
    assert findings.worst(slow) == (5, "read")
    assert list(findings.result().values()) == [5, 7, 0, 0.5, 0.5, 2, 1, 0, 0.2]
