"""How much memory the server's process may have: by a memory cgroup where one can be made, else by RLIMIT_DATA.

Its workers are not limited: they are moved out of the group, or their limit is raised again, once they are seen.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

_GROUPS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
"""Where cgroups of version 1 and 2 are, and the file that takes the limit."""


class MemoryLimit(Protocol):
    """A limit on a process's memory."""

    name: str
    """What it is called in the output."""

    def hold(self, pid: int) -> None:
        """Limit a process that has just been started."""
        ...

    def release(self, pid: int) -> None:
        """Let a worker, which was started by a process that is limited, have what it wants."""
        ...


class _Group:
    def __init__(self, limited: Path, free: Path) -> None:
        self._limited, self._free = limited, free
        self.name = f"memory cgroup {limited}"

    def hold(self, pid: int) -> None:
        (self._limited / "cgroup.procs").write_text(str(pid))

    def release(self, pid: int) -> None:
        with suppress(OSError):
            (self._free / "cgroup.procs").write_text(str(pid))


class _ResourceLimit:
    name = "RLIMIT_DATA"

    def __init__(self, most: int) -> None:
        self._most = most

    def hold(self, pid: int) -> None:
        hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
        resource.prlimit(pid, resource.RLIMIT_DATA, (self._most, hard))

    def release(self, pid: int) -> None:
        with suppress(OSError):
            hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
            resource.prlimit(pid, resource.RLIMIT_DATA, (hard, hard))


@contextmanager
def memory_limit(most: int) -> Iterator[MemoryLimit]:
    """Yield what limits a process to so many bytes, and remove it in the end, when the process is gone."""
    for root, file in _GROUPS:
        limited, free = root / f"rlm-neighbours-{os.getpid()}", root / f"rlm-neighbours-{os.getpid()}-workers"
        try:
            for group in (limited, free):
                group.mkdir()
                with suppress(OSError):  # of version 1 alone: what a process has is counted where it is moved to
                    (group / "memory.move_charge_at_immigrate").write_text("3")
            (limited / file).write_text(str(most))
        except OSError:
            _removed(limited, free)
            continue
        try:
            yield _Group(limited, free)
        finally:
            _removed(limited, free)
        return
    yield _ResourceLimit(most)


def _removed(*groups: Path) -> None:
    for group in groups:
        with suppress(OSError):
            group.rmdir()
