"""The real server in a process of its own, and on a port of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rlm_server.broker.providers.registry import with_keys

ROOT = Path(__file__).parents[2]
SECONDS = 60  # far more than any of this takes


@dataclass
class RealServer:
    """A server on a port of its own, that can be stopped and started again on the same data."""

    data: Path
    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.data / "development-key").read_text().strip()

    def start(self) -> None:
        keys = {spec.key_variable for spec in with_keys()}
        where = ["--listen", self.target, "--data-dir", str(self.data)]
        command = [sys.executable, "-m", "rlm_server.commands.cli", "serve", *where]
        environment = {name: value for name, value in os.environ.items() if name not in keys}
        environment["RLM_GRACE_SECONDS"] = "1"
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("serving on ")

    def end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=SECONDS)
            self.process = None


def free_port() -> int:
    """Return a port that stays free while no server is there: the system gives out others (those from 32768 on)."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("none of 100 ports is free")


@contextmanager
def running(data: Path) -> Iterator[RealServer]:
    """A server on a free port, that is killed at the end."""
    server = RealServer(data, free_port())
    server.start()
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)
