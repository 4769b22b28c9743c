"""The file of a run that goes on: entries, added one after another, each sealed and bound to all before it.

It outlives the process as soon as an entry was added, and is not synced to the disk: a run survives `kill -9` of its
server, and a crash of the machine may cost the run. An entry that stops in its middle does not count: that is how a
killed process leaves one. Anything else that is not as it was written is refused.

Events are written with the next entry that is none: what tells of a turn that did not end is told again anyway.

Layout: `RLMR`, version (2 bytes), nonce (16); then records of `sandbox.pool.sealing`, a list of entries in JSON each.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
import struct
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from rlm_server.runs.past.entries import Entry, Happened, entries
from sandbox.pool.sealing import Chain, Sealed, Sealer, SnapshotRefused
from sandbox.pool.snapshots import SessionStore, Stored, StoreFull

log = logging.getLogger(__name__)

VERSION = 1
_HEADER = struct.Struct("<4sH16s")
_MARK, _KIND = b"RLMR", ".run"
MAX_RECORD = 64 << 20
"""Bytes of entries that were written together."""
MOST_WAITING = 64
"""Events that wait to be written."""


class RunFile:
    """The file of one run, to which entries are added. Where that cannot be, the run goes on and is not kept."""

    def __init__(
        self,
        store: SessionStore,
        owner: str,
        path: Path,
        out: io.FileIO | None,
        chain: Chain,
        keeps_nothing: Callable[[], bool],
    ) -> None:
        """Without `out`, and from when it `keeps_nothing`, nothing is kept."""
        self._store, self._owner, self._path, self._out, self._chain = store, owner, path, out, chain
        self._keeps_nothing = keeps_nothing
        self._waiting: list[Entry] = []

    @property
    def kept(self) -> bool:
        """Whether all that was added is there for another process."""
        return self._out is not None

    def add(self, entry: Entry) -> None:
        """Add an entry. It outlives this process when the call returns, unless it is an event."""
        if self._out is not None and self._keeps_nothing():
            self.remove()
        if self._out is None:
            return
        self._waiting.append(entry)
        if isinstance(entry, Happened) and len(self._waiting) < MOST_WAITING:
            return
        waiting, self._waiting = self._waiting, []
        record, chain = io.BytesIO(), self._chain.copy()
        sealed = Sealed(record, chain)
        sealed.write(entries.dump_json(waiting))
        sealed.finish()
        try:
            self._store.count(self._path, self._owner, record.tell())
            _write_all(self._out, record.getbuffer())
            self._chain = chain
        except (StoreFull, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("a run of %r is not kept: %s", self._owner, reason)
            self.remove()

    def close(self) -> None:
        """Add no more. What was added stays."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def remove(self) -> None:
        """Add no more, and remove the file."""
        self.close()
        self._store.remove(Stored(self._path, "", 0), self._owner)


class RunFiles:
    """The files of runs, in a folder. Their bytes count among those of the stored sessions of their owner."""

    def __init__(self, folder: Path, secret: bytes, store: SessionStore) -> None:
        self._folder, self._sealer, self._store = folder, Sealer(secret), store
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def create(self, run: str, owner: str, keeps_nothing: Callable[[], bool] = lambda: False) -> RunFile:
        """Begin the file of a run; one that cannot be made keeps nothing. `keeps_nothing` is asked each time."""
        path, header = self._path(run), _HEADER.pack(_MARK, VERSION, secrets.token_bytes(16))
        chain = self._chain(header, run, owner)
        file = RunFile(self._store, owner, path, None, chain, keeps_nothing)
        if keeps_nothing():
            return file
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            out = io.FileIO(fd, "wb")
            _write_all(out, memoryview(header))
        except OSError as error:
            log.warning("a run of %r is not kept: %s", owner, error.strerror)
            return file
        return RunFile(self._store, owner, path, out, chain, keeps_nothing)

    def take_up(
        self, run: str, owner: str, keeps_nothing: Callable[[], bool] = lambda: False
    ) -> tuple[RunFile, list[Entry]]:
        """Go on with the file that another process left: what it has, and where more is added. Raises as `read`."""
        found, size, chain = self._read(run, owner)
        path = self._path(run)
        out = io.FileIO(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb")
        out.truncate(size)
        out.seek(size)
        self._store.count_as_it_is(path, owner, size)
        return RunFile(self._store, owner, path, out, chain, keeps_nothing), found

    def read(self, run: str, owner: str) -> list[Entry]:
        """Return what the file of a run has.

        Raises:
            SnapshotRefused: there is none, it was altered, or it is another's, or of another version.
            OSError: it cannot be read.
        """
        return self._read(run, owner)[0]

    def _read(self, run: str, owner: str) -> tuple[list[Entry], int, Chain]:
        try:
            with self._path(run).open("rb") as source:
                header = source.read(_HEADER.size)
                if len(header) < _HEADER.size or header[:4] != _MARK:
                    raise SnapshotRefused("this is no file of a run")
                version = _HEADER.unpack(header)[1]
                if version != VERSION:
                    raise SnapshotRefused(f"the run has version {version} of the format, and this is {VERSION}")
                chain = self._chain(header, run, owner)
                found, size = [], _HEADER.size
                for some in _read(source, chain):
                    found += some
                    size, good = source.tell(), chain.copy()
        except FileNotFoundError:
            raise SnapshotRefused("nothing is stored of it") from None
        if not found:
            raise SnapshotRefused("nothing is stored of it")
        return found, size, good

    def remove(self, run: str, owner: str) -> None:
        """Remove the file of a run, where there is one."""
        self._store.remove(Stored(self._path(run), "", 0), owner)

    def count(self, run: str, owner: str) -> None:
        """Count the bytes of a file that a former process left."""
        path = self._path(run)
        self._store.count_as_it_is(path, owner, path.stat().st_size)

    def names(self) -> list[str]:
        """Return the runs that have a file."""
        return [path.name.removesuffix(_KIND) for path in self._folder.glob(f"*{_KIND}")]

    def keep_only(self, runs: Container[str]) -> None:
        """Remove the files of all other runs."""
        for path in self._folder.glob(f"*{_KIND}"):
            if path.name.removesuffix(_KIND) not in runs:
                path.unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}{_KIND}"

    def _chain(self, header: bytes, run: str, owner: str) -> Chain:
        return self._sealer.chain_of(b"run", owner.encode(), run.encode(), header)


def _write_all(out: io.FileIO, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


def _read(source: io.BufferedReader, chain: Chain) -> Iterator[list[Entry]]:
    """Yield the entries of each whole record of a file."""
    while True:
        record = bytearray()
        ends = False
        while not ends:
            opened = chain.open(source)
            if opened is None:
                return
            chunk, ends = opened
            record += chunk
            if len(record) > MAX_RECORD:
                raise SnapshotRefused(f"entries of a run have more than {MAX_RECORD} bytes")
        try:
            yield entries.validate_json(bytes(record))
        except ValueError as error:
            raise SnapshotRefused("an entry of a run cannot be read") from error
