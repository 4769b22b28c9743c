"""Drives Monty (PyPI `pydantic-monty`): an interpreter of a part of Python, in worker processes."""

from __future__ import annotations

from typing import Any

import pydantic_monty  # type: ignore[import-not-found]  # only in the peer's environment

from benchmarks.drivers.serving import Measure, expect, seconds, serve

TRIVIAL = "total = sum(range(10))\ntotal"
CALLS = 1000
MAX_SESSIONS = 200
"""Each holds a process."""


class Monty:
    """Sessions of one pool. It keeps ended sessions' processes for new ones, so a fresh one mostly finds one ready."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._warm = self._checkout()
        self._held: list[Any] = []

    def _checkout(self) -> Any:
        return self._pool.checkout(limits={"max_suspensions": 1_000_000_000}).__enter__()

    def fresh(self) -> float:
        """From no session to its first result."""
        checkouts: list[Any] = []

        def work() -> None:
            checkouts.append(self._checkout())
            expect(checkouts[0].feed_run(TRIVIAL), 45)

        taken = seconds(work)
        checkouts[0].__exit__(None, None, None)
        return taken

    def trivial(self) -> float:
        """Run a turn in a session that has run others."""
        return seconds(lambda: expect(self._warm.feed_run(TRIVIAL), 45))

    def door(self) -> float:
        """Call the host once; the loop around the calls is taken off."""
        empty = seconds(lambda: self._warm.feed_run(f"for _ in range({CALLS}): pass"))
        code, names = f"for _ in range({CALLS}): ping()", {"ping": lambda: None}
        return (seconds(lambda: self._warm.feed_run(code, external_lookup=names)) - empty) / CALLS

    def hold(self, count: int) -> float:
        """Hold so many more sessions, each after a turn; return how many are held."""
        for _ in range(count):
            self._held.append(self._checkout())
            expect(self._held[-1].feed_run(TRIVIAL), 45)
        return len(self._held)

    @property
    def measures(self) -> dict[str, Measure]:
        """What can be asked for. Programs use more of Python than it has."""
        return {"fresh": self.fresh, "exec": self.trivial, "door": self.door, "hold": self.hold}


if __name__ == "__main__":
    with pydantic_monty.Monty(min_processes=2, max_processes=MAX_SESSIONS) as pool:
        serve(f"Monty {pydantic_monty.__version__}, in worker processes", Monty(pool).measures)
