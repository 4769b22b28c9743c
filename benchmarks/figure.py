"""The figures: what each is called, which measure of a driver gives it, and in what unit."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contestant import OURS


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of every contestant whose driver has the measure."""

    name: str
    """What it is called in the result; the peers' have the contestant's name before it."""
    measure: str
    """What drivers are asked for."""
    shown: str
    """What it is called in the table, with its unit."""
    scale: float = 1.0
    """What a driver's answer is multiplied by."""
    rounds: int = 1_000
    """It is measured in at most so many rounds."""

    def of(self, contestant: str) -> str:
        """Return what a contestant's figure is called in the result."""
        return self.name if contestant == OURS else f"{contestant}_{self.name}"


# To add a figure, add it here and as a measure in a driver.
TIMED = (
    Figure("fresh_ms_p50", "fresh", "fresh session to first result, ms", 1e3),
    Figure("once_ms_p50", "once", "the same where no state is kept, ms", 1e3),
    Figure("fresh_data_ms_p50", "fresh_data", "the same with numpy and pandas, ms", 1e3),
    Figure("exec_ms_p50", "exec", "turn in a warm session, ms", 1e3),
    Figure("fork_ms_p50", "fork", "fork to first result, ms", 1e3),
    Figure("door_us_p50", "door", "host call, µs", 1e6),
    Figure("worker_hop_ms_p50", "hop", "what a worker process adds, ms", 1e3),
    Figure("wake_ms_p50", "wake", "hibernated session to first result, ms", 1e3),
    Figure("snapshot_kb", "stored", "stored form of a small session, kB", 1e-3, rounds=5),
    Figure("parallel_speedup", "parallel", "two owners at once, times faster", rounds=5),
    Figure("parallel_same_owner_speedup", "parallel_same_owner", "one owner's two at once, times faster", rounds=5),
)
"""The medians of many rounds."""
MEMORY = Figure("private_mb_per_session", "hold", "memory of an idle session, MB", 1e-6)
STOP_WORST = Figure("stop_ms_worst", "stop", "stopping a runaway, at worst, ms", 1e3, rounds=3)
STOP_MIDDLE = Figure("stop_ms_p50", "stop", "the same, in the middle, ms", 1e3, rounds=3)
"""Over all kinds of runaways: from the interrupt until the turn is undone and the session ready for the next."""
SLOWDOWN = Figure("guest_slowdown", "program", "pyperformance, native's time = 1", rounds=5)
"""A geometric mean over programs."""
FIGURES = (*TIMED, STOP_WORST, STOP_MIDDLE, MEMORY, SLOWDOWN)
