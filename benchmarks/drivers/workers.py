"""Drives this project's sandbox in its confined worker processes: `sandbox.pool.pool.WorkerPool`."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from benchmarks.drivers.ours import LIMITS, STATE, TRIVIAL, checked, on_a_guest_thread
from benchmarks.drivers.serving import Measure, seconds, serve
from sandbox.door import HostCall, Json
from sandbox.pool.pool import LiveSession, WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.vm.image import Loaded, prepare, standard_specs
from sandbox.vm.session import Session

WORK = "for number in range(5_000_000): pass"

T = TypeVar("T")


class Workers:
    """Two owners, the first with three sessions, and for comparison a session in this very process."""

    def __init__(self, loaded: Loaded, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._loop = loop
        self._inner = Session(loaded.program, loaded.images["core"], LIMITS)
        # Both owners are this program's, so a machine without a jail may run them side by side.
        self._folder = folder
        store = SessionStore(folder, secrets.token_bytes(32))
        self._pool = WorkerPool(loaded, sessions=4, spares=0, store=store, unconfined=True)
        self._first, self._second, self._sleeper, self._other = (
            self._wait(self._pool.create(owner, "core", LIMITS)) for owner in ("first", "first", "first", "other")
        )
        self._wait(_turn(self._sleeper, STATE))
        for session in (self._first, self._second, self._other):
            self._wait(_turn(session, TRIVIAL, "45\n"))
        checked(self._inner.execute(TRIVIAL), "45\n")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def hop(self) -> float:
        """What a turn takes longer in a worker than in this process."""
        within = seconds(lambda: checked(self._inner.execute(TRIVIAL), "45\n"))
        return self._wait(_timed(_turn(self._first, TRIVIAL, "45\n"))) - within

    def wake(self) -> float:
        """From a session that hibernates to its first result, in a worker that is there."""
        self._wait(self._sleeper.hibernate())
        return self._wait(_timed(_turn(self._sleeper, "len(state)", "10000\n")))

    def stored(self) -> float:
        """Return the bytes of a small session's stored form."""
        self._wait(self._sleeper.hibernate())
        (path,) = self._folder.iterdir()
        size = path.stat().st_size
        self._wait(_turn(self._sleeper, "len(state)", "10000\n"))
        return size

    def parallel(self) -> float:
        """How many times faster two owners' turns of computing end together than one after the other."""
        return self._wait(_speedup(self._first, self._other))

    def parallel_same_owner(self) -> float:
        """How many times faster one owner's two turns of computing end together than one after the other."""
        return self._wait(_speedup(self._first, self._second))

    def close(self) -> None:
        """End all sessions and workers."""
        self._inner.close()
        self._wait(self._pool.close())

    @property
    def measures(self) -> dict[str, Measure]:
        """What can be asked for."""
        return {
            "hop": self.hop,
            "wake": self.wake,
            "stored": self.stored,
            "parallel": self.parallel,
            "parallel_same_owner": self.parallel_same_owner,
        }


async def _turn(session: LiveSession, code: str, shown: str = "") -> None:
    checked(await session.execute(code, _nothing, lambda _stream, _data: None), shown)


async def _nothing(_: HostCall) -> Json:
    return None


async def _timed(work: Coroutine[Any, Any, None]) -> float:
    """Return how long `work` takes, seen from the loop it runs in."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await work
    return loop.time() - started


async def _speedup(first: LiveSession, second: LiveSession) -> float:
    async def together() -> None:
        async with asyncio.TaskGroup() as tasks:
            for session in (first, second):
                tasks.create_task(_turn(session, WORK))

    alone = [await _timed(_turn(session, WORK)) for session in (first, second)]
    return sum(alone) / await _timed(together())


def main() -> None:
    """Serve until stdin is closed."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def work() -> None:
        with TemporaryDirectory() as folder:
            workers = Workers(prepare(standard_specs({})), loop, Path(folder))
            serve("this sandbox, in worker processes", workers.measures)
            workers.close()

    on_a_guest_thread(work)


if __name__ == "__main__":
    main()
