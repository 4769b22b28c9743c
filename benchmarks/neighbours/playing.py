"""The course of one scenario: the victim alone, then beside the attacker, with things stopped in between."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.neighbours.client import Client, Standing
from benchmarks.neighbours.findings import Findings, Found, disk_unpaid_mb
from benchmarks.neighbours.memory_limit import MemoryLimit
from benchmarks.neighbours.processes import Gone, Spoken
from benchmarks.neighbours.scenario import Scenario
from benchmarks.neighbours.server import ATTACKER, CONTEXT_QUOTA, VICTIM, Database, Looked, NotHere, Server, serving
from benchmarks.neighbours.victim import LONGEST_CALL

VICTIM_MODULE, ATTACKER_MODULE = "benchmarks.neighbours.victim", "benchmarks.neighbours.attacker"
ATTACKER_NICENESS = 10
"""Of the attacker's client, which stands for one on another machine: it takes only the processors' time left over."""
THINGS = ("run", "session")
"""What an attacker tells of, and what can be stopped."""
PATIENCE = 40.0
"""For what answers within a second where all is well; the victim gives up a call after half of it."""
SETTLING_SECONDS = 1.0
"""After an attack, until what stays is looked at."""
STOPPED_AT = 0.6
"""Of an attack, when one of its things is stopped."""
AGAIN_SECONDS = 10.0
STOPPED_AFTER = 0.5
"""Of an attack that is begun again, until the server is stopped."""


@dataclass(slots=True)
class Stage:
    """Where scenarios are played."""

    database: Database
    limit: MemoryLimit
    seconds: float
    """The length of an attack."""
    alone_seconds: float
    findings: Findings
    folder: Path | None = None
    logs: Path | None = None
    """Where the servers' logs are kept."""
    victim: Spoken | None = None

    async def play(self, scenario: Scenario) -> Found:
        """Play a scenario on a new server; what it does to the server ends with that.

        One that cannot be played is noted as such.
        """
        found = Found(scenario.name, keyless_seconds=self.seconds if scenario.keyless else 0.0)
        self.findings.found.append(found)
        attacker = await Spoken.started(ATTACKER_MODULE, niceness=ATTACKER_NICENESS)
        try:
            async with serving(scenario, self.database, self.limit, self.folder) as server:
                try:
                    await self._course(scenario, server, attacker, found)
                except Gone as error:
                    found.note = str(error)
                if server.process.ended:
                    found.deaths = 1
                else:
                    found.stops["server"] = await server.stop()
                found.tracebacks = server.tracebacks()
                if self.logs is not None:
                    self.logs.mkdir(parents=True, exist_ok=True)
                    shutil.copy(server.log, self.logs / f"{scenario.name}.log")
        except (NotHere, Gone) as error:
            found.note = f"not played: {error}"
        finally:
            await asyncio.shield(attacker.kill())
        return found

    async def _course(self, scenario: Scenario, server: Server, attacker: Spoken, found: Found) -> None:
        victim = await self._victim()
        victim.tell(address=server.address, key=server.keys[VICTIM])
        await victim.heard(PATIENCE)
        empty = server.look()
        alone = await _mixed(victim, self.alone_seconds)
        self.findings.add_alone(alone["seconds"])
        found.errors += alone["errors"]
        quiet = server.look()
        server.sampler.forget_peak()
        attacker.tell(scenario=scenario.name, address=server.address, key=server.keys[ATTACKER])
        said = await _until(attacker, "ready", PATIENCE)
        before, posted_before = server.look(), await _standing(server)
        attacker.tell(seconds=self.seconds)
        beside, (said, stop_s) = await asyncio.gather(
            _mixed(victim, self.seconds), self._attacked(server, attacker, said)
        )
        found.beside = beside["seconds"]
        found.errors += [error for error in beside["errors"] if not error.startswith(scenario.refusable)]
        if stop_s is not None:
            found.stops["thing"] = stop_s
        found.calls, found.refused = said["calls"], said["refused"]
        await asyncio.sleep(SETTLING_SECONDS)
        found.rss_mb = server.sampler.peak_mb - quiet.rss_mb
        found.workers_mb = server.sampler.workers_peak_mb
        after, posted_after = server.look(), await _standing(server)
        found.rss_left_mb = after.rss_mb - quiet.rss_mb
        victims = list(empty.workers)[:1]  # the first there was, as the victim came first
        found.worker_deaths = sum(pid in victims for pid in server.lost_workers()) + beside["restarts"]
        rounds = beside["rounds"] / max(alone["rounds"], 1e-9)
        count_cpu(found, (empty, quiet, before, after), rounds, (posted_before, posted_after), victims)
        count_disk(found, (empty, quiet, after), rounds, posted_after)
        attacker.tell(seconds=AGAIN_SECONDS)
        await asyncio.sleep(STOPPED_AFTER)

    async def _victim(self) -> Spoken:
        if self.victim is None or self.victim.ended:
            self.victim = await Spoken.started(VICTIM_MODULE)
        return self.victim

    async def _attacked(
        self, server: Server, attacker: Spoken, said: dict[str, Any]
    ) -> tuple[dict[str, Any], float | None]:
        """Wait until the attack is over. In its middle, stop something of the attacker's; return what that took."""
        things: dict[str, str] = {kind: said[kind] for kind in THINGS if kind in said}
        middle = asyncio.create_task(self._stopped(server, things))
        try:
            while "calls" not in said:
                said = await attacker.heard(self.seconds + PATIENCE)
                things |= {kind: said[kind] for kind in THINGS if kind in said}
            return said, await middle
        finally:
            middle.cancel()

    async def _stopped(self, server: Server, things: dict[str, str]) -> float | None:
        await asyncio.sleep(self.seconds * STOPPED_AT)
        if not things:
            return None
        client = server.client(ATTACKER)
        started = time.monotonic()
        with suppress(grpc.RpcError, TimeoutError):
            async with asyncio.timeout(LONGEST_CALL):
                await _stop_one(client, things)
        taken = time.monotonic() - started
        await client.channel.close()
        return taken

    async def close(self) -> None:
        """End the victim's process."""
        if self.victim is not None:
            await self.victim.kill()


async def _stop_one(client: Client, things: dict[str, str]) -> None:
    if "run" in things:
        await client.cancel(things["run"])
    else:
        await client.delete(things["session"])


async def _mixed(victim: Spoken, seconds: float) -> dict[str, Any]:
    victim.tell(seconds=seconds)
    return await victim.heard(seconds + PATIENCE + 5 * LONGEST_CALL)


async def _until(process: Spoken, key: str, seconds: float) -> dict[str, Any]:
    """Return all that a process says up to a line with this key."""
    said: dict[str, Any] = {}
    while key not in said:
        said |= await process.heard(seconds)
    return said


async def _standing(server: Server) -> Standing:
    """Return what the attacker has paid, and has; nothing where the server does not say."""
    client = server.client(ATTACKER)
    try:
        async with asyncio.timeout(LONGEST_CALL):
            return await client.standing()
    except (grpc.RpcError, TimeoutError):
        return Standing()
    finally:
        await client.channel.close()


def count_cpu(
    found: Found,
    looks: tuple[Looked, Looked, Looked, Looked],
    rounds: float,
    paid: tuple[Standing, Standing],
    victims: list[int],
) -> None:
    """Count the processor time that the attack took.

    The looks are before and after the victim was alone, and before and after it was beside the attacker. There it did
    `rounds` times what it did alone. `victims` are its workers. What other workers take to start is not counted.
    """
    empty, quiet, before, after = looks
    of_victim = (quiet.cpu_s - empty.cpu_s) * rounds
    starting = min((cpu for pid, cpu in quiet.workers.items() if pid not in victims), default=0.0)
    workers = sum(
        max(0.0, cpu - before.workers.get(pid, starting)) for pid, cpu in after.workers.items() if pid not in victims
    )
    found.cpu_s = max(0.0, after.cpu_s - before.cpu_s - of_victim) + workers
    earlier, now = paid
    found.paid_cpu_s = max(0.0, now.cpu_s - earlier.cpu_s) + min(now.held_cpu_s, workers)


def count_disk(found: Found, looks: tuple[Looked, Looked, Looked], rounds: float, paid: Standing) -> None:
    """Count what the disk grew by since the attacker came. The looks are those of `count_cpu` but for the third."""
    empty, quiet, after = looks
    of_victim = max(0.0, quiet.disk_mb - empty.disk_mb) * rounds
    texts = after.texts_mb - quiet.texts_mb
    found.disk_mb = texts + after.disk_mb - quiet.disk_mb
    grown = after.disk_mb - quiet.disk_mb - of_victim + max(0.0, texts - CONTEXT_QUOTA / 1e6)
    found.disk_unpaid_mb = disk_unpaid_mb(grown - paid.stored_mb, paid.calls, paid.cpu_s)
