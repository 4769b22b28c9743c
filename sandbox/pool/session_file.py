"""The file of one session: when it is written and read, and what becomes of the session where it cannot be.

A session without a name has a file only while it hibernates. One with a name is kept: its file has its state after
every turn, before anybody is told of the turn's end. Where that fails, the session goes on and the file is removed:
nothing is better than a state that is older than what was told. So the session is not kept, until it can be written
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from sandbox.corpora.corpus import Corpus
from sandbox.pool.disk_threads import Abandoned, DiskThreads, Going
from sandbox.pool.records import Beside
from sandbox.pool.snapshots import Restored, SessionStore, Stored, StoreFull
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.instance import Image
from sandbox.wire.sessions import Ended

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""A session whose state could not be stored is not tried again for so long."""

T = TypeVar("T")
Work = Callable[[Checkpoint, Sequence[int], Callable[[], None]], T]
"""Is given a state, and what code has looked at; and what to call between its pieces."""


class SessionFile:
    """The file of a session. Whoever uses it does one thing at a time with it, but for `give_up`."""

    def __init__(
        self,
        store: SessionStore,
        threads: DiskThreads,
        turn_threads: DiskThreads,
        owner: str,
        name: str,
        stored: Stored | None,
    ) -> None:
        """`stored` is the file of a session that is not this process's yet."""
        self._store, self._threads, self._turn_threads = store, threads, turn_threads
        self._owner, self._name, self._stored = owner, name, stored
        self.note: Callable[[], Callable[[], bytes]] = lambda: bytes
        """Makes what makes, in a thread, the note that is stored where the file is written anew.

        It takes the place of the notes of all turns so far.
        """
        self.notes: list[bytes] = []
        """The notes that were found where another process had written the file."""
        self.foreign = stored is not None
        """Whether another process has written it, and it was not read yet."""
        self._seen: list[int] = []  # as it is stored
        self._retry_at = 0.0  # on the loop's clock
        self._going: Going | None = None

    @property
    def kept(self) -> bool:
        """Whether the session's state after its last finished turn is stored, so that it outlives this process."""
        return bool(self._name) and self._stored is not None

    def give_up(self) -> None:
        """Have what is written or read just now be written or read no further."""
        if self._going is not None:
            self._going.give_up()

    async def read(self, image: Image, corpora: Sequence[Corpus], take: Callable[[Restored], None]) -> None:
        """Read the state and have it taken, in a thread. The file of a session without a name is then gone.

        Raises:
            Abandoned: it was given up.
            SnapshotRefused, OSError: as `SessionStore.get`.
        """

        def work(go_on: Callable[[], None]) -> None:
            found = self._get(image, corpora, go_on)
            take(found)
            if not self._name:
                self.remove()
                return
            self._stored, self._seen = found.stored, found.seen
            if self.foreign:
                self.notes, self.foreign = found.notes, False

        await self._in_thread(self._threads, work)

    def _get(self, image: Image, corpora: Sequence[Corpus], go_on: Callable[[], None]) -> Restored:
        if self._stored is None:
            raise OSError("the session has no file")
        return self._store.get(self._stored, self._owner, image, corpora, go_on)

    async def write(self, checkpoint: Checkpoint, seen: list[int]) -> None:
        """Write the state, where it is not in the file already.

        Raises:
            Abandoned: it was given up.
            StoreFull: it does not fit beside the owner's others.
            OSError: it cannot be written.
        """

        note = self.note()

        def work(go_on: Callable[[], None]) -> None:
            if self._stored is None or not self._name:
                beside = Beside(seen, note())
                self._stored = self._store.put(checkpoint, self._owner, go_on, name=self._name, beside=beside)
            elif seen != self._seen:
                self._stored = self._store.append(self._stored, self._owner, checkpoint, None, Beside(seen), go_on)
            self._seen = [*seen]

        try:
            await self._in_thread(self._threads, work)
        except asyncio.CancelledError:
            if not self._name:
                self.remove()
            raise
        finally:
            self._cut()

    async def add_turn(self, checkpoint: Checkpoint, ended: Ended | None, seen: list[int], note: bytes) -> None:
        """Store what a turn would change of a session that is kept, and its note. Without one, the state is as it was.

        Raises:
            Abandoned: it was given up, and the turn is not stored.
        """
        loop = asyncio.get_running_loop()
        if not self._name or loop.time() < self._retry_at:
            return
        before, seen = (self._seen, self.note()), [*seen]
        beside = Beside(seen if seen != self._seen else (), note)
        try:
            self._stored = await self._in_thread(
                self._turn_threads, lambda go_on: self._add(checkpoint, ended, before, beside, go_on)
            )
            self._seen = seen
        except (StoreFull, OSError) as error:
            self._lose(error)
            self._retry_at = loop.time() + RETRY_SECONDS
        except (asyncio.CancelledError, Abandoned):
            self._cut()
            raise

    def _add(
        self,
        checkpoint: Checkpoint,
        ended: Ended | None,
        before: tuple[list[int], Callable[[], bytes]],
        beside: Beside,
        go_on: Callable[[], None],
    ) -> Stored:
        """Add a turn, and return the file as it counts with it.

        First it is written anew, if there is none or it has grown. So what a cancelled turn has added can be cut.
        """

        def anew() -> Stored:
            seen, note = before
            made = Beside(seen, note())
            self._stored = self._store.put(checkpoint, self._owner, go_on, name=self._name, beside=made)
            return self._stored

        stored = self._stored
        if stored is None or self._store.is_long(stored, checkpoint.private_bytes + checkpoint.files.used_bytes):
            stored = anew()
        if ended is None and beside == Beside():
            return stored
        try:
            return self._store.append(stored, self._owner, checkpoint, ended, beside, go_on)
        except StoreFull:
            self._store.cut(stored, self._owner)
            return self._store.append(anew(), self._owner, checkpoint, ended, beside, go_on)

    async def use(
        self, checkpoint: Checkpoint | None, seen: list[int], image: Image, corpora: Sequence[Corpus], work: Work[T]
    ) -> T:
        """Have work done with a session's state, in a thread. Of a session that hibernates, the state is read for that.

        Raises:
            Abandoned: it was given up.
            SnapshotRefused, OSError: as `SessionStore.get`.
            Exception: what the work raised.
        """

        def use(go_on: Callable[[], None]) -> T:
            if checkpoint is not None:
                return work(checkpoint, seen, go_on)
            found = self._get(image, corpora, go_on)
            try:
                return work(found.checkpoint, found.seen if self.foreign else seen, go_on)
            finally:
                found.checkpoint.close()

        return await self._in_thread(self._threads, use)

    async def _in_thread(self, threads: DiskThreads, work: Callable[[Callable[[], None]], T]) -> T:
        going = self._going = Going()
        try:
            return await threads.run(self._owner, going, lambda: work(going.check))
        finally:
            self._going = None

    def _cut(self) -> None:
        """Take away of the file of a kept session what does not count."""
        if self._stored is not None and self._name:
            try:
                self._store.cut(self._stored, self._owner)
            except OSError as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning("a session of %r is not kept: %s", self._owner, reason)
        self.remove()

    def remove(self) -> None:
        """Remove the file, where there is one."""
        if self._stored is not None:
            self._store.remove(self._stored, self._owner)
            self._stored = None
