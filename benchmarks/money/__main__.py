"""How safe and how fast money is, on SQLite and on Postgres.

The last line of stdout is the result as JSON. Money is in nano-US-dollars. A figure without a database's name is the
worst of both, or their sum where it counts what must not be. Ends with status 1 where any of that is not 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.money.databases import KINDS, databases
from benchmarks.money.findings import Findings
from benchmarks.money.measuring import Sizes, measure
from benchmarks.progress import shown


def main() -> int:
    """Measure, print, and return the status to end with."""
    usual = Sizes()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.money", description=__doc__)
    parser.add_argument("--calls", type=int, help=f"calls of the load ({usual.calls:,})")
    parser.add_argument("--large", action="store_true", help="a load of 100,000 calls")
    parser.add_argument("--seed", type=int, default=usual.seed, help="which of the calls go wrong, and how")
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=KINDS, help="only on these")
    parser.add_argument("--folder", type=Path, help="where SQLite's files are; a temporary folder otherwise")
    options = parser.parse_args()
    sizes = Sizes(calls=options.calls or (100_000 if options.large else usual.calls), seed=options.seed)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    findings = Findings()

    progress = shown("trust what is counted, not what is timed")
    with TemporaryDirectory(dir=options.folder, prefix="bench-money-") as folder, databases(Path(folder)) as places:
        for kind in options.databases:
            asyncio.run(measure(places, kind, sizes, findings, progress))
    print(findings.table())
    print(json.dumps(findings.result()))
    return 0 if findings.right else 1


if __name__ == "__main__":
    sys.exit(main())
