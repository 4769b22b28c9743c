"""What a session costs in memory, as the kernel counts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.contestant import Contestant, Driver

GONE = (FileNotFoundError, ProcessLookupError)
"""What looking at a process, a thread or a descriptor raises that has ended meanwhile."""

COUNTED = Path("/proc/self/smaps_rollup").exists()
"""Whether this kernel counts it."""


def bytes_per_session(contestant: Contestant, sessions: int) -> float:
    """Hold so many idle sessions in a driver of their own, and return the bytes each adds to its processes."""
    with Driver(contestant) as driver:
        driver.ask("hold", count=1)  # what only the first needs is not counted
        before = held_bytes(driver.pid)
        driver.ask("hold", count=sessions)
        return (held_bytes(driver.pid) - before) / sessions


def held_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants that no file on a disk backs, page tables included.

    What is shared counts in proportion. Files in memory that hold checkpoints count whole, mapped or not.
    """
    total = _page_tables(pid) + files_in_memory(pid, "pages")
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        if name in {"Pss_Anon:", "Pss_Shmem:", "SwapPss:"}:
            total += int(kilobytes) * 1024
    return total + sum(map(held_bytes, children(pid)))


def children(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(*GONE):
            yield from map(int, (thread / "children").read_text().split())


def _page_tables(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE:"))


def files_in_memory(pid: int, named: str = "") -> int:
    """Return the bytes of the files in memory that a process has open and whose names begin so, each counted once."""
    sizes = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(*GONE):
            if os.readlink(fd).startswith(f"/memfd:{named}"):
                status = fd.stat()
                sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())
