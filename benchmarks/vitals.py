"""What a server and its workers hold: memory, descriptors, processes, and sessions in files."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import GONE, children, files_in_memory


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is held at a moment. Memory in MB of a million bytes.

    Of a process of another user only `resident_mb` is seen. To all but root, a worker in its jail is such a process.
    """

    server_mb: float
    """Memory of the server's own: no file backs it, and what is shared counts in proportion."""
    workers_mb: float
    shared_mb: float
    """Files in memory: golden images, and the checkpoints of live sessions."""
    resident_mb: float
    """Of server and workers, as the kernel says; what is shared counts in each."""
    descriptors: int
    worker_descriptors: int
    processes: int
    stored: int
    """Sessions in files."""
    stored_mb: float

    @property
    def memory_mb(self) -> float:
        """All memory: what the processes have for their own, and the files in memory."""
        return self.server_mb + self.workers_mb + self.shared_mb

    @classmethod
    def taken(cls, store: Path) -> Vitals:
        """Look at this process, those it started, and the folder where sessions hibernate."""
        workers = list(children(os.getpid()))
        sizes = [entry.stat().st_size for entry in os.scandir(store)]
        return cls(
            server_mb=_own(os.getpid()),
            workers_mb=sum(map(_own, workers)),
            shared_mb=files_in_memory(os.getpid()) / 1e6,
            resident_mb=sum(map(_resident, [os.getpid(), *workers])),
            descriptors=_descriptors(os.getpid()),
            worker_descriptors=sum(map(_descriptors, workers)),
            processes=1 + len(workers),
            stored=len(sizes),
            stored_mb=sum(sizes) / 1e6,
        )


def _own(pid: int) -> float:
    kilobytes = 0
    with suppress(PermissionError, *GONE):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            kilobytes += int(size) if name in {"Pss_Anon:", "SwapPss:"} else 0
    return kilobytes * 1024 / 1e6


def _resident(pid: int) -> float:
    with suppress(*GONE):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def _descriptors(pid: int) -> int:
    with suppress(PermissionError, *GONE):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
