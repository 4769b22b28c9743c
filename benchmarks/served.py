"""A server as a process of its own, and its first tenant's calls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks.contestant import ROOT
from benchmarks.environment import environment

START_SECONDS = 300.0
"""Where the guest's image has to be built first, a start takes minutes."""
STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """Where stubs call it, and with what."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]
    address: str
    pid: int


@asynccontextmanager
async def served(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Served]:
    """Start a server whose data are in `folder`, with no settings but these, and yield where it is.

    Raises:
        RuntimeError: it did not start.
    """
    command = ("-m", "rlm_server.commands.cli", "serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env=environment() | dict(settings), cwd=ROOT
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode().strip()
        if not line.startswith("serving on "):
            raise RuntimeError("the server did not start; what it said is above")
        key = (folder / "development-key").read_text().strip()
        address = line.removeprefix("serving on ")
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(channel, (("authorization", f"Bearer {key}"),), address, process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.communicate()
