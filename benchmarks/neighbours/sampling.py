"""Looks at a server's process and its workers all the time: memory, processor time, which workers there are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.memory import GONE, children

EVERY_SECONDS = 0.05
WORKERS_EVERY = 4
"""Workers are looked for at one look of so many."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Sampler:
    """What was seen of a process. Memory in MB of a million bytes, processor time in seconds."""

    pid: int
    found: Callable[[int], None]
    """Told of every worker that is new."""
    rss_mb: float = 0.0
    peak_mb: float = 0.0
    workers_peak_mb: float = 0.0
    """Of all workers together."""
    cpu_s: float = 0.0
    workers: dict[int, float] = field(default_factory=dict)
    """Processor time of every worker there ever was."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self, *, workers: bool = True) -> None:
        """Look once. Of a process that has gone, what was last seen stays."""
        with suppress(*GONE):
            self.rss_mb = resident_mb(self.pid)
            self.peak_mb = max(self.peak_mb, self.rss_mb)
            self.cpu_s = cpu_seconds(self.pid)
            if workers:
                self._look_at_workers()

    def _look_at_workers(self) -> None:
        together = 0.0
        for worker in children(self.pid):
            if worker not in self.workers:
                self.found(worker)
            self.workers[worker] = cpu_seconds(worker)
            together += resident_mb(worker)
        self.workers_peak_mb = max(self.workers_peak_mb, together)

    def forget_peak(self) -> None:
        """Begin anew with the peaks of memory."""
        self.workers_peak_mb = 0.0
        self.look()
        self.peak_mb = self.rss_mb

    def run(self) -> None:
        """Look until told to stop."""
        number = 0
        while not self._stop.wait(EVERY_SECONDS):
            self.look(workers=number % WORKERS_EVERY == 0)
            number += 1

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()


@contextmanager
def sampled(pid: int, found: Callable[[int], None]) -> Iterator[Sampler]:
    """Look at a process, in a thread, until the context ends."""
    sampler = Sampler(pid, found)
    sampler.look()
    thread = threading.Thread(target=sampler.run, name="sampler")
    thread.start()
    try:
        yield sampler
    finally:
        sampler.stop()
        thread.join()


def resident_mb(pid: int) -> float:
    """Return what a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)  # a process that has ended and was not waited for has none


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in its own code and in the kernel for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
