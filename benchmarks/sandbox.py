"""How fast and how small the sandbox is, beside its peers: `python -m benchmarks.sandbox --help`.

What is compared alternates within a round, and each timing is the median of the rounds. The last line of stdout is
the result as JSON: times in the unit that stands in their name, memory in MB of a million bytes, ratios without a unit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import geometric_mean, median

from benchmarks import memory, peers, plot, programs
from benchmarks.contestant import OURS, ROOT, Contestant, Driver, DriverError
from benchmarks.figure import MEMORY, SLOWDOWN, STOP_MIDDLE, STOP_WORST, TIMED
from benchmarks.progress import Progress, shown
from benchmarks.report import Report
from benchmarks.rounds import Answers, Question, alternate
from benchmarks.runaways import RUNAWAYS

NATIVE = "native"
SYSTEM_PYTHON = "/usr/bin/python3"
"""A distribution builds its CPython with every optimisation; one built by hand often lacks them."""
PICTURE = ROOT / "build" / "bench-sandbox.svg"


def own(sessions: int) -> list[Contestant]:
    """Return the contestants that need no environment but this one; memory is measured over so many sessions."""
    python = SYSTEM_PYTHON if Path(SYSTEM_PYTHON).exists() else sys.executable
    return [
        Contestant(OURS, (sys.executable, "-m", "benchmarks.drivers.ours"), sessions),
        Contestant(OURS, (sys.executable, "-m", "benchmarks.drivers.workers")),
        Contestant(NATIVE, (python, "-m", "benchmarks.drivers.native")),
    ]


def measured(
    contestants: Sequence[Contestant], rounds: int, pyperformance: Path | None, progress: Progress,
    runaways: Sequence[str] = tuple(RUNAWAYS),
) -> Report:  # fmt: skip
    """Measure everything; without pyperformance's folder of benchmarks, all but its programs.

    Raises:
        DriverError: ours failed.
    """
    report = Report()
    with ExitStack() as stack:
        drivers: list[Driver] = []
        for contestant in contestants:
            progress(f"starting {contestant.name}")
            with failing_softly(contestant, progress):
                drivers.append(stack.enter_context(Driver(contestant)))
                report.about.setdefault(contestant.name, drivers[-1].about)
        report.figures = timed(drivers, rounds, progress) | stops(drivers, runaways, rounds, progress)
        if pyperformance:
            report.slowdowns = slowdowns(drivers, pyperformance, rounds, progress)
    for name in report.about:
        if ratios := [ratio for (contestant, _), ratio in report.slowdowns.items() if contestant == name]:
            report.figures[name, SLOWDOWN.name] = geometric_mean(ratios)
    for contestant in contestants:
        if memory.COUNTED and contestant.sessions_held and contestant.name in report.about:
            progress(f"holding {contestant.sessions_held} sessions of {contestant.name}")
            with failing_softly(contestant, progress):
                held = memory.bytes_per_session(contestant, contestant.sessions_held)
                report.figures[contestant.name, MEMORY.name] = held * MEMORY.scale
    return report


def timed(drivers: Sequence[Driver], rounds: int, progress: Progress) -> Answers:
    """Return the figures that are medians of many rounds, by contestant and name."""
    answers = alternate(drivers, [Question(f.name, f.measure, f.rounds) for f in TIMED], rounds, progress)
    scales = {figure.name: figure.scale for figure in TIMED}
    return {(contestant, name): value * scales[name] for (contestant, name), value in answers.items()}


def stops(drivers: Sequence[Driver], runaways: Sequence[str], rounds: int, progress: Progress) -> Answers:
    """Return how long stopping a runaway takes, at worst and in the middle of these kinds."""
    progress("stopping runaways")
    taken: dict[str, list[float]] = {}
    for _ in range(min(rounds, STOP_WORST.rounds)):
        for kind in runaways:
            for driver in drivers:
                if STOP_WORST.measure in driver.measures:
                    taken.setdefault(driver.contestant.name, []).append(driver.ask(STOP_WORST.measure, kind=kind))
    return {
        (contestant, figure.name): of_all(values) * figure.scale
        for contestant, values in taken.items()
        for figure, of_all in ((STOP_WORST, max), (STOP_MIDDLE, median))
    }


def slowdowns(drivers: Sequence[Driver], pyperformance: Path, rounds: int, progress: Progress) -> Answers:
    """Return how many times native's time each contestant takes, by contestant and program."""
    progress("running pyperformance's programs")
    questions = [
        Question(name, SLOWDOWN.measure, SLOWDOWN.rounds, programs.request(pyperformance, name))
        for name in programs.PROGRAMS
    ]
    times = alternate(drivers, questions, min(rounds, SLOWDOWN.rounds), progress)
    return {
        (contestant, program): taken / times[NATIVE, program]
        for (contestant, program), taken in times.items()
        if contestant != NATIVE and (NATIVE, program) in times
    }


@contextmanager
def failing_softly(contestant: Contestant, progress: Progress) -> Iterator[None]:
    """If a peer fails, say so, and go on without its figure. The project's own sandbox must not fail."""
    try:
        yield
    except DriverError as error:
        if contestant.name == OURS:
            raise
        progress(f"left out: {error}")


def names(listed: str) -> list[str]:
    """Read the option --peers."""
    chosen = [name for name in listed.split(",") if name != "none"]
    if unknown := set(chosen) - set(peers.PEERS):
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(sorted(unknown))}")
    return chosen


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description="Measure the sandbox.")
    every = ",".join(peers.PEERS)
    parser.add_argument("--peers", type=names, default=every, metavar="NAMES", help=f"none, or some of {every} (all)")
    parser.add_argument("--rounds", type=int, default=100, help="how often to measure what is quick (100)")
    chosen = parser.parse_args()
    progress = shown("trust ratios, and those little")
    contestants = own(sessions=1000) + peers.prepared(chosen.peers, progress)
    report = measured(contestants, chosen.rounds, peers.programs(progress), progress)
    print(report.table())
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(plot.svg(report))
    print(f"\ndrawn in {PICTURE.relative_to(ROOT)}")
    print(json.dumps(report.result()))


if __name__ == "__main__":
    main()
