"""Processes that are told and that answer in lines of JSON; none outlives whoever started it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.contestant import ROOT
from benchmarks.environment import environment

LONGEST_LINE = 64 << 20


class Gone(Exception):
    """The process has ended, or did not answer in time."""


class Spoken:
    """A process that runs one of our modules, in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def started(cls, module: str, *, log: IO[bytes] | None = None, niceness: int = 0) -> Spoken:
        """Start a module. What it says to stderr goes to `log`, or to ours."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, cwd=ROOT, env=environment(), start_new_session=True, limit=LONGEST_LINE,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        )  # fmt: skip
        _be_nice(process.pid, niceness)
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    def tell(self, **message: Any) -> None:
        """Send it a line; one to a process that has ended is lost."""
        if self._process.stdin is None:
            raise Gone("it has no input")
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def heard(self, seconds: float) -> dict[str, Any]:
        """Return its next line.

        Raises:
            Gone: none came within so many seconds.
        """
        if self._process.stdout is None:
            raise Gone("it has no output")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except TimeoutError:
            raise Gone(f"nothing was said for {seconds:g} s") from None
        if not line:
            raise Gone("it has ended")
        said: dict[str, Any] = json.loads(line)
        return said

    async def stop(self, seconds: float) -> None:
        """Send SIGTERM, and kill its group where it has not ended after so many seconds."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        await self.kill()

    async def kill(self) -> None:
        """End it, and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


def _be_nice(pid: int, niceness: int) -> None:
    """Set the niceness of a process, and of its session: where Linux shares the processors out among sessions first,
    as it does outside of control groups (sched(7), autogroups), that of a process counts within its session alone."""
    os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(f"{niceness}\n")
