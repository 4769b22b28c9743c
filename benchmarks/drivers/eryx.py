"""Drives eryx (PyPI `pyeryx`): CPython as a WebAssembly component. Runs in its environment, on Python 3.12 or newer."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import eryx  # type: ignore[import-not-found]  # only in the peer's environment

from benchmarks.drivers.serving import Measure, expect, seconds, serve

TRIVIAL = "total = sum(range(10))\nprint(total)"
CALLS = 1000


class Eryx:
    """Sessions of one factory: of its ways to a session with state, the fastest."""

    def __init__(self) -> None:
        self._factory = eryx.SandboxFactory()
        ping = {"name": "ping", "fn": lambda: None, "description": "answers at once"}
        self._warm = self._factory.create_session(callbacks=[ping])
        self._programs: dict[str, Any] = {}
        self._held = [self._first_result()]

    def _first_result(self) -> Any:
        session = self._factory.create_session()
        expect(session.execute(TRIVIAL).stdout, b"45\n")
        return session

    def fresh(self) -> float:
        """From no session to its first result."""
        made: list[Any] = []  # so that freeing it is not timed
        return seconds(lambda: made.append(self._first_result()))

    def once(self) -> float:
        """From nothing to the result of a sandbox that keeps no state."""
        made: list[Any] = []

        def work() -> None:
            made.append(eryx.Sandbox())
            expect(made[0].execute(TRIVIAL).stdout, b"45\n")

        return seconds(work)

    def trivial(self) -> float:
        """Run a turn in a session that has run others."""
        return seconds(lambda: expect(self._warm.execute(TRIVIAL).stdout, b"45\n"))

    def door(self) -> float:
        """Call the host once; the loop around the calls is taken off."""
        empty = seconds(lambda: self._warm.execute(f"for _ in range({CALLS}): pass"))
        return (seconds(lambda: self._warm.execute(f"for _ in range({CALLS}): await ping()")) - empty) / CALLS

    def program(self, name: str, first: str, code: str) -> float:
        """Run a program in a session of its own, where `first` makes it ready to run."""
        if name not in self._programs:
            self._programs[name] = self._factory.create_session()
            self._programs[name].execute(first)
        return seconds(lambda: self._programs[name].execute(code))

    def hold(self, count: int) -> float:
        """Hold so many more sessions, each after a turn; return how many are held."""
        self._held += [self._first_result() for _ in range(count)]
        return len(self._held)

    @property
    def measures(self) -> dict[str, Measure]:
        """What can be asked for."""
        return {
            "fresh": self.fresh,
            "once": self.once,
            "exec": self.trivial,
            "door": self.door,
            "program": self.program,
            "hold": self.hold,
        }


if __name__ == "__main__":
    serve(f"eryx {version('pyeryx')}, in process", Eryx().measures)
