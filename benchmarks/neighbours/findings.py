"""What was found, scenario by scenario, and the figures that sum it up.

`victim_p99_x` is the worst over scenarios and kinds of calls: how many times as long the 99th percentile is beside the
attacker as it is alone. A kind whose percentile alone is below 80 ms may take 250 ms beside, and counts as 3 then: what
nobody would notice is not a fault. With fewer than 100 calls the percentile is the longest call.

`server_rss_growth_mb` is what the server's own process has in memory more than before, at its peak: its heap, and what
it has mapped of files and of pages that it shares with workers. The memory of workers is in a column of its own: it is
that of one tenant each, within `memory_bytes` of a session and `worker_bytes` of a worker, and no other tenant's code
is in it.

`disk_growth_mb_unpaid` is what the disk grew by above what was paid for. Paid are 16 KB for each model call that was
posted to the attacker's account, 1 MB for each second of processor time posted there, the quota of its contexts, what
its stored sessions have of theirs, 8 MB that the log of any database takes, and what the victim's own calls have
written, by what they wrote alone.

`attacker_unpaid_cpu_s` is the processor time of the server beside the attacker, without what the victim's calls took
alone, and with that of all workers but the victim's. From it goes what was posted to the attacker's account, and what
its turns that still ran took, up to what is held for them.

`keyless_cpu_share` is the same as a part of one processor, in scenarios that use no tenant's key: connections, headers
that are too large, health and reflection. Nobody can be billed for that, so that it has to be little.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

KB, MB = 1e3, 1e6
PAID_MB_PER_CALL = 0.016
PAID_MB_PER_CPU_SECOND = 1.0
LOG_MB = 8.0
QUICK_MS, UNNOTICED_MS = 80.0, 250.0
FAIR = 3.0
"""Times as long as alone."""
SHOWN = 60
"""Characters of an error in the table."""


@dataclass(slots=True)
class Found:
    """What was found in one scenario. Memory and disk in MB of a million bytes, times in seconds."""

    name: str
    beside: dict[str, list[float]] = field(default_factory=dict)
    """What the victim's calls took beside the attacker, by kind."""
    errors: list[str] = field(default_factory=list)
    """The victim's."""
    rss_mb: float = 0.0
    """What the server's memory grew by at its peak."""
    rss_left_mb: float = 0.0
    """What of it is left a second after the attack."""
    workers_mb: float = 0.0
    """What all workers had at their peak."""
    disk_mb: float = 0.0
    disk_unpaid_mb: float = 0.0
    cpu_s: float = 0.0
    """Of the server and the attacker's workers, for the attacker."""
    paid_cpu_s: float = 0.0
    keyless_seconds: float = 0.0
    """How long the attack was, where it used no key."""
    deaths: int = 0
    """Of the server."""
    worker_deaths: int = 0
    """Of the victim's workers."""
    stops: dict[str, float] = field(default_factory=dict)
    """What it took to stop a run or session of the attacker's, and the server, each while the attack went on."""
    tracebacks: int = 0
    calls: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """The attacker's, by status."""
    note: str = ""
    """Why it was not played, or not to its end."""

    @property
    def unpaid_cpu_s(self) -> float:
        return 0.0 if self.keyless_seconds else max(0.0, self.cpu_s - self.paid_cpu_s)

    @property
    def keyless_cpu_share(self) -> float:
        return self.cpu_s / self.keyless_seconds if self.keyless_seconds else 0.0

    @property
    def stop_s(self) -> float:
        return max(self.stops.values(), default=0.0)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile: of fewer than 100 values the largest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def times_alone(alone_ms: float, beside_ms: float) -> float:
    """Return how many times as long as alone; at most 3 where that is so or where nobody would notice."""
    least = UNNOTICED_MS / FAIR if alone_ms < QUICK_MS else 0.0
    return max(1.0, beside_ms / max(alone_ms, least))


def disk_unpaid_mb(grown_mb: float, calls: int, cpu_s: float) -> float:
    """Return what of a growth was not paid for."""
    return max(0.0, grown_mb - LOG_MB - calls * PAID_MB_PER_CALL - cpu_s * PAID_MB_PER_CPU_SECOND)


@dataclass(slots=True)
class Findings:
    """What was found in all scenarios."""

    limit: str
    """What limits the server's memory."""
    alone: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """What the victim's calls took alone, by kind, in all rounds."""
    found: list[Found] = field(default_factory=list)

    def add_alone(self, seconds: Mapping[str, Iterable[float]]) -> None:
        """Take what a round alone took."""
        for kind, values in seconds.items():
            self.alone[kind].extend(values)

    def worst(self, found: Found) -> tuple[float, str]:
        """Return how many times as long as alone the victim's worst kind of call took, and which kind that is."""
        times = [
            (times_alone(p99(self.alone[kind]) * 1e3, p99(values) * 1e3), kind)
            for kind, values in found.beside.items()
            if values and self.alone[kind]
        ]
        return max(times, default=(1.0, ""))

    def result(self) -> dict[str, float]:
        """Return the figures."""
        found = self.found
        return {
            "victim_p99_x": round(max((self.worst(one)[0] for one in found), default=1.0), 2),
            "server_rss_growth_mb": round(max((one.rss_mb for one in found), default=0.0), 1),
            "disk_growth_mb_unpaid": round(max((one.disk_unpaid_mb for one in found), default=0.0), 1),
            "attacker_unpaid_cpu_s": round(max((one.unpaid_cpu_s for one in found), default=0.0), 2),
            "keyless_cpu_share": round(max((one.keyless_cpu_share for one in found), default=0.0), 2),
            "victim_errors": sum(len(one.errors) for one in found),
            "server_deaths": sum(one.deaths for one in found),
            "worker_deaths_of_others": sum(one.worker_deaths for one in found),
            "stop_s_worst": round(max((one.stop_s for one in found), default=0.0), 2),
        }

    def table(self) -> str:
        """Return all of it for people."""
        lines = [f"the server's memory is limited by {self.limit}", "alone, p99 in ms:"]
        lines += [f"  {kind:12} {p99(values) * 1e3:8.0f}  of {len(values):,}" for kind, values in self.alone.items()]
        lines += ["", HEADING, *map(self.line, self.found)]
        lines += [f"  {one.name}: {error}" for one in self.found for error in sorted(set(one.errors))[:3]]
        return "\n".join(lines)

    def line(self, one: Found) -> str:
        """Return a scenario as a line below `HEADING`."""
        x, kind = self.worst(one)
        milliseconds = p99(one.beside[kind]) * 1e3 if kind else 0.0
        refused = " ".join(f"{name}:{count}" for name, count in sorted(one.refused.items()))
        return (
            f"{one.name:26} {x:6.1f} {milliseconds:7.0f} {kind:11} {one.rss_mb:6.0f} {one.rss_left_mb:6.0f} "
            f"{one.workers_mb:7.0f} "
            f"{one.disk_mb:6.0f} {one.disk_unpaid_mb:6.0f} {one.cpu_s:6.1f} {one.unpaid_cpu_s:6.1f} {one.stop_s:5.1f} "
            f"{len(one.errors):4} {one.deaths:4} {one.worker_deaths:4} {one.tracebacks:4} {one.calls:7} {refused}"
            + (f"  ({one.note})" if one.note else "")
        )


HEADING = (
    f"{'scenario':26} {'x':>6} {'p99 ms':>7} {'worst kind':11} {'rss':>6} {'left':>6} {'workers':>7} "
    f"{'disk':>6} {'unpaid':>6} {'cpu s':>6} {'unpaid':>6} "
    f"{'stop':>5} {'errs':>4} {'died':>4} {'wrks':>4} {'trcb':>4} {'calls':>7} refused"
)
