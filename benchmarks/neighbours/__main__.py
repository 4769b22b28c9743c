"""What a tenant can do to its neighbours: a victim's calls alone and beside an attacker, in every scenario.

Each scenario has a server of its own, whose memory is limited. The last line of stdout is the result as JSON: the worst
of all scenarios, or their sum where it counts what must not be. What the figures mean is in
`benchmarks.neighbours.findings`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.neighbours.findings import HEADING, Findings, Found
from benchmarks.neighbours.memory_limit import memory_limit
from benchmarks.neighbours.playing import Stage
from benchmarks.neighbours.scenarios import SCENARIOS
from benchmarks.neighbours.server import Database
from benchmarks.progress import Progress, shown
from rlm_server.config.settings import Settings
from rlm_server.server import image_specs
from sandbox.vm.image import prepare
from tests.databases import KINDS, postgres_server

MEMORY_BYTES = 3 << 30
ALONE_SECONDS = 1.0


async def measured(
    names: Sequence[str], *, seconds: float, alone_seconds: float, minutes: float, database: Database,
    folder: Path | None, logs: Path | None, progress: Progress,
) -> Findings:  # fmt: skip
    """Play the scenarios of these names, as many as begin within so many minutes."""
    end = time.monotonic() + minutes * 60
    with memory_limit(MEMORY_BYTES) as limit:
        findings = Findings(limit.name)
        stage = Stage(database, limit, seconds, alone_seconds, findings, folder, logs)
        progress(f"the server's memory is limited by {limit.name}")
        try:
            for number, name in enumerate(names, start=1):
                if time.monotonic() > end:
                    findings.found.append(Found(name, note="not played: time was up"))
                    progress(f"{number:2} of {len(names)} {findings.line(findings.found[-1])}")
                    continue
                found = await stage.play(SCENARIOS[name])
                progress(f"{number:2} of {len(names)} {findings.line(found)}")
        finally:
            await stage.close()
    return findings


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--only", help="only these scenarios, with commas between them")
    parser.add_argument("--list", action="store_true", help="tell the scenarios and end")
    parser.add_argument("--seconds", type=float, default=4.0, help="the length of each attack (4)")
    parser.add_argument("--minutes", type=float, default=13.0, help="no scenario begins later than this (13)")
    parser.add_argument("--database", choices=KINDS, default="sqlite", help="what the servers keep all in (sqlite)")
    parser.add_argument("--folder", type=Path, help="where data directories are made; a temporary folder otherwise")
    parser.add_argument("--logs", type=Path, help="a folder where the log of each server is kept")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:26} {one.prepare.__doc__}" for name, one in SCENARIOS.items()))
        return 0
    names = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"there is no scenario {', '.join(unknown)}; --list tells them")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    progress = shown("trust what is counted, not times")
    prepare(image_specs(Settings.load()), progress=progress).program.close()
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server()) if options.database == "postgres" else ""
        progress(f"{'':9}{HEADING}")
        findings = asyncio.run(
            measured(
                names,
                seconds=options.seconds,
                alone_seconds=min(ALONE_SECONDS, options.seconds),
                minutes=options.minutes,
                database=Database(postgres),
                folder=options.folder,
                logs=options.logs,
                progress=progress,
            )
        )
    print(findings.table())
    print(json.dumps(findings.result()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
