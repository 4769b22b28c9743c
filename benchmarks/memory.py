"""What a session costs in memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contestant import Contestant, Driver

COUNTED = Path("/proc/self/smaps_rollup").exists()
"""Whether this kernel counts it."""


def bytes_per_session(contestant: Contestant, sessions: int) -> float:
    """Hold so many idle sessions in a driver of their own, and return what each adds to its processes."""
    with Driver(contestant) as driver:
        driver.ask("hold", count=1)  # what only the first needs is not counted
        before = held_bytes(driver.pid)
        driver.ask("hold", count=sessions)
        return (held_bytes(driver.pid) - before) / sessions


def held_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants that no file backs; what is shared counts in proportion."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        if name in {"Pss_Anon:", "Pss_Shmem:", "SwapPss:"}:
            total += int(kilobytes) * 1024
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += sum(held_bytes(int(child)) for child in (thread / "children").read_text().split())
    return total
