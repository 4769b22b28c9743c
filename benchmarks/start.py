"""How long commands take to start: `rlm-server --help`, and `rlm-server serve` until it has answered its first call.

Ends with one line of JSON: seconds, each the median of all rounds. `make bench-start`; with ARGS="--beside PATH" the
same is measured of another checkout, in turns with this one, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import grpc
from rlm.v1 import context_pb2, context_pb2_grpc

from benchmarks.contestant import ROOT
from benchmarks.environment import environment
from benchmarks.progress import Progress, shown

ROUNDS = 5
ANSWER_SECONDS = 60.0
_COMMAND = "from rlm_server.commands.cli import main; main()"
"""What the installed script does, here of whichever checkout comes first on the path."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with the project's source, and the environment its commands run in: its own, or else this one's."""

    root: Path

    def command(self, *words: str) -> list[str]:
        """Return `rlm-server` with its words, as a command line."""
        own = self.root / ".venv" / "bin" / "python"
        return [str(own) if own.exists() else sys.executable, "-c", _COMMAND, *words]

    @property
    def environment(self) -> dict[str, str]:
        """What commands have: modules of this checkout, before those that are installed."""
        path = (self.root, self.root / "proto", self.root / "clients" / "python")
        return environment() | {"PYTHONPATH": os.pathsep.join(map(str, path))}

    def run(self, *words: str) -> None:
        """Run a command to its end.

        Raises:
            CalledProcessError: it failed; what it said is on stderr.
        """
        command = self.command(*words)
        subprocess.run(command, cwd=self.root, env=self.environment, stdout=subprocess.DEVNULL, check=True)


def help_seconds(checkout: Checkout) -> float:
    """Return how long `rlm-server --help` takes."""
    started = time.perf_counter()
    checkout.run("--help")
    return time.perf_counter() - started


def serve_seconds(checkout: Checkout) -> float:
    """Return how long `rlm-server serve`, with a data directory of its own, takes to its first answer.

    The first answer is that to an authenticated call. The client is ready before the server starts.

    Raises:
        RuntimeError: the server did not start.
    """
    with TemporaryDirectory(prefix="bench-start-") as folder:
        command = checkout.command("serve", "--listen", "127.0.0.1:0", "--data-dir", folder)
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=checkout.root, env=checkout.environment, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                if not line.startswith("serving on "):
                    raise RuntimeError("the server did not start; what it said is above")
                _call(line.removeprefix("serving on ").strip(), (Path(folder) / "development-key").read_text().strip())
                return time.perf_counter() - started
            finally:
                server.terminate()
                server.communicate()


def _call(address: str, key: str) -> None:
    with grpc.insecure_channel(address) as channel:
        context_pb2_grpc.ContextServiceStub(channel).ListContexts(
            context_pb2.ListContextsRequest(), metadata=(("authorization", f"Bearer {key}"),), timeout=ANSWER_SECONDS
        )


MEASURES: dict[str, Callable[[Checkout], float]] = {"help_s": help_seconds, "serve_s": serve_seconds}
"""By the name in the result."""


@dataclass(slots=True)
class Findings:
    """What was measured: of each figure the seconds of all rounds."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def result(self) -> dict[str, float]:
        """Return the medians."""
        return {name: round(median(values), 3) for name, values in self.seconds.items()}

    def table(self) -> str:
        """Return every figure with its median and its range, a line each."""
        width = max(map(len, self.seconds))
        return "\n".join(
            f"{name.ljust(width)}  {median(values):.3f}  ({min(values):.3f} to {max(values):.3f})"
            for name, values in self.seconds.items()
        )


def measured(checkouts: Sequence[tuple[str, Checkout]], rounds: int, progress: Progress) -> Findings:
    """Measure every checkout once in each round. The name that comes with it goes before those of its figures.

    A round before the first is not counted: it compiles the modules, and reads the files into the machine's cache.

    Raises:
        CalledProcessError, RuntimeError: a command failed.
    """
    findings = Findings()
    for _, checkout in checkouts:
        progress(f"making sure of the images of {checkout.root}")
        checkout.run("image", "build")
    for round_ in range(rounds + 1):
        progress(f"round {round_} of {rounds}" if round_ else "a round to warm up")
        for name, measure in MEASURES.items():
            for prefix, checkout in checkouts:
                taken = measure(checkout)
                if round_:
                    findings.seconds.setdefault(prefix + name, []).append(taken)
    return findings


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measure so often ({ROUNDS})")
    parser.add_argument(
        "--beside", type=Path, metavar="PATH", help="another checkout of the project, measured in turns"
    )
    options = parser.parse_args()
    progress = shown("compare, and trust no single figure")
    checkouts = [("", Checkout(ROOT))]
    if options.beside:
        checkouts.append(("beside_", Checkout(options.beside.resolve())))
    findings = measured(checkouts, options.rounds, progress)
    print(findings.table())
    print(json.dumps(findings.result()))


if __name__ == "__main__":
    main()
