"""The fake provider as a process of its own, and the bill it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from benchmarks.contestant import ROOT
from rlm_server.ledger import Usage

START_SECONDS = 30.0
SETTLING_SECONDS = 0.5
"""A request whose caller gave it up may still be read, and billed, for so long."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What one request was billed, and what went wrong with it."""

    usage: Usage
    fault: str | None


Bills = dict[str, list[Bill]]
"""By `digest` of the prompt."""


def digest(prompt: str) -> str:
    """Return what the bill names a prompt by."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@asynccontextmanager
async def provider(
    *, latency: float = 0.0, fault_rate: float = 0.0, seed: int = 0, faults: Sequence[str] = ()
) -> AsyncIterator[str]:
    """Start a fake provider on loopback and yield its URL. `latency` is in seconds, `faults` by name."""
    options = ["--port", "0", "--latency", str(latency), "--fault-rate", str(fault_rate), "--seed", str(seed)]
    if faults:
        options += ["--faults", ",".join(faults)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fake_provider.server", *options, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the fake provider has no output")
        line = (await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode()
        if "http" not in line:
            raise RuntimeError("the fake provider did not start; what it said is above")
        yield line.split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def bills(url: str) -> Bills:
    """Return all that was billed, once nothing more is."""
    # Without what the environment says of proxies: it is on loopback.
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        entries: list[dict[str, object]] = []
        while True:
            now = (await client.get("/bill")).json()
            if entries and len(now) == len(entries):
                break
            entries = now
            await asyncio.sleep(SETTLING_SECONDS)
    billed: Bills = defaultdict(list)
    for entry in entries:
        usage, fault = entry["usage"], entry["fault"]
        assert isinstance(usage, dict)
        billed[str(entry["prompt"])].append(Bill(Usage(**usage), None if fault is None else str(fault)))
    return billed
