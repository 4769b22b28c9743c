"""CPython's own tests, as `scripts/cpython-tests` fetched them, and the CPython of the same version beside them."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.outcome import Outcome, Result

VERSION = "3.14.3"
SUITE = Path(__file__).parent / "guest" / "suite.py"
MAX_SECONDS = 600
"""A module's tests natively; the slowest wait for minutes."""


@dataclass(frozen=True, slots=True)
class CPython:
    """An unpacked CPython with its tests, in `folder`."""

    folder: Path

    @classmethod
    def fetched(cls) -> CPython:
        """Return it from the cache, fetched first where it is not there.

        Raises:
            RuntimeError: it cannot be fetched; the message says why.
        """
        root = Path(__file__).parents[2]
        done = subprocess.run([root / "scripts" / "cpython-tests"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"CPython's tests cannot be fetched: {done.stderr}")
        return cls(Path(done.stdout.strip()))

    def tests(self) -> dict[str, bytes]:
        """Return the files of the package `test` by their paths in it."""
        package = self.folder / "lib" / "python3.14" / "test"
        files = (path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix != ".pyc")
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}

    def run(self, module: str) -> list[Outcome]:
        """Run a module's tests in this CPython on this machine.

        Raises:
            OSError: it does not start on this machine, which is not Linux on x86-64.
        """
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "told"
            work = Path(folder) / "work"
            work.mkdir()
            with suppress(subprocess.TimeoutExpired):  # what has ended by then counts
                subprocess.run(
                    [self.folder / "bin" / "python3.14", SUITE, module, told],
                    cwd=work, timeout=MAX_SECONDS, check=False, stdin=subprocess.DEVNULL, capture_output=True,
                )  # fmt: skip
            outcomes = [json.loads(line) for line in told.read_text().splitlines()]
        return [Outcome(module, test, Result(result), why) for test, result, why in outcomes if result != "started"]
