"""The course of a soak, as figures, table and picture: in each sample, what was held and how long turns took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, linear_regression, median, quantiles

from benchmarks.curves import Curve, Panel, svg
from benchmarks.report import shown
from benchmarks.vitals import Vitals

STEADY_PERCENT = 2.0
"""What grows by no more over the second half is called steady."""

Of = Callable[[Vitals], float]

ROWS: tuple[tuple[str, Of], ...] = (
    ("memory, MB", lambda held: held.memory_mb),
    ("  the server's own", lambda held: held.server_mb),
    ("  the workers' own", lambda held: held.workers_mb),
    ("  images and checkpoints", lambda held: held.shared_mb),
    ("resident, counted in each, MB", lambda held: held.resident_mb),
    ("descriptors of the server", lambda held: held.descriptors),
    ("descriptors of the workers", lambda held: held.worker_descriptors),
    ("processes", lambda held: held.processes),
    ("sessions in files", lambda held: held.stored),
    ("size of these files, MB", lambda held: held.stored_mb),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is held after so many turns and seconds, and how long each turn since the last sample took."""

    turns: int
    seconds: float
    held: Vitals
    live: int
    """Sessions that were live."""
    live_seconds: tuple[float, ...] = ()
    wake_seconds: tuple[float, ...] = ()
    """Those of sessions that hibernated; waking is counted in, and so is another's hibernating to make room."""


@dataclass(slots=True)
class Course:
    """Samples in their order; the first is from before the first turn."""

    samples: list[Sample] = field(default_factory=list)

    def growth(self, of: Of) -> float:
        """Return by how many percent something grows over the second half, by the line that fits the samples best."""
        half = self.samples[len(self.samples) // 2 :]
        turns, values = [sample.turns for sample in half], [float(of(sample.held)) for sample in half]
        if len(half) < 2 or not any(values):
            return 0.0
        return 100 * linear_regression(turns, values).slope * (turns[-1] - turns[0]) / fmean(values)

    def figures(self) -> dict[str, float]:
        """Return what was found, by name: times in milliseconds, memory in MB of a million bytes."""
        first, last = self.samples[0], self.samples[-1]
        start, end = first.held, last.held
        figures = {
            "soak_turns": last.turns,
            "live_sessions": last.live,
            "hibernated_sessions": end.stored,
            "soak_seconds": last.seconds,
            "turns_per_s": last.turns / last.seconds if last.seconds else 0.0,
            "memory_mb_start": start.memory_mb,
            "memory_mb_end": end.memory_mb,
            "memory_growth_percent": self.growth(lambda held: held.memory_mb),
            "server_memory_mb_end": end.server_mb,
            "worker_memory_mb_end": end.workers_mb,
            "shared_memory_mb_end": end.shared_mb,
            "resident_mb_end": end.resident_mb,
            "descriptors_start": start.descriptors + start.worker_descriptors,
            "descriptors_end": end.descriptors + end.worker_descriptors,
            "descriptors_growth_percent": self.growth(lambda held: held.descriptors + held.worker_descriptors),
            "processes_end": end.processes,
            "stored_kb_per_session": 1e3 * end.stored_mb / max(1, end.stored),
        }
        for name, times in (("live_turn", self._all(False)), ("wake", self._all(True))):
            figures[f"{name}_ms_p50"], figures[f"{name}_ms_p99"] = middle_and_tail(times)
        return {name: round(value, 3) for name, value in figures.items()}

    def _all(self, woken: bool) -> list[float]:
        return [time for sample in self.samples for time in (sample.wake_seconds if woken else sample.live_seconds)]

    def table(self) -> str:
        """Return what is held at the start, half way and at the end, and whether that is steady."""
        samples = self.samples
        marks = (samples[0], samples[len(samples) // 2], samples[-1])
        rows = [["", *(f"{mark.turns:,} turns" for mark in marks), "second half"]]
        for name, of in ROWS:
            growth = self.growth(of)
            trend = "steady" if abs(growth) <= STEADY_PERCENT else "growing" if growth > 0 else "shrinking"
            rows.append([name, *(shown(of(mark.held)) for mark in marks), f"{growth:+.1f} % {trend}"])
        first, *others = (max(len(row[i]) for row in rows) for i in range(5))
        return "\n".join(
            row[0].ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))
            for row in rows
        )

    def picture(self) -> str:
        """Return memory, descriptors and times over the turns, as SVG."""
        samples = self.samples
        turns = [float(sample.turns) for sample in samples]
        named = dict(ROWS)

        def held(*names: str) -> list[Curve]:
            return [Curve(name.strip(), turns, [named[name](sample.held) for sample in samples]) for name in names]

        def took(name: str, times: Callable[[Sample], Sequence[float]]) -> list[Curve]:
            points = [(sample.turns, *middle_and_tail(times(sample))) for sample in samples if times(sample)]
            return [
                Curve(f"{name}, {part}", [float(point[0]) for point in points], [point[i] for point in points])
                for i, part in ((1, "half are faster"), (2, "99 of 100 are"))
            ]

        return svg(
            [
                Panel("memory, MB", held(*(name for name, _ in ROWS[:4]))),
                Panel("descriptors", held("descriptors of the server", "descriptors of the workers")),
                Panel(
                    "time of a turn, ms",
                    [
                        *took("live", lambda sample: sample.live_seconds),
                        *took("woken", lambda sample: sample.wake_seconds),
                    ],
                ),
            ]
        )


def middle_and_tail(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, in milliseconds."""
    if len(seconds) < 2:
        return 1e3 * sum(seconds), 1e3 * sum(seconds)
    return 1e3 * median(seconds), 1e3 * quantiles(seconds, n=100, method="inclusive")[98]
