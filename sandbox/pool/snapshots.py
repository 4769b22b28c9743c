"""The files of stored sessions. A session that rests is written to one, and read back when it is next used.

A session with a name is kept: its file has its state after every turn, each appended as a record, and outlives the
process. `sandbox.pool.sealing` says how files are sealed, and `sandbox.pool.records` what is in them.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox.corpora.corpus import Corpus
from sandbox.limits import Limits, PoolLimits
from sandbox.pool import records
from sandbox.pool.records import Beside, Rebuilt, always
from sandbox.pool.sealing import HEADER, Chain, Sealer, SnapshotRefused, check
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.instance import Image
from sandbox.wire.sessions import Ended

GROWTH = 2
"""A file is written anew before a turn is added where it has so many times the bytes of the session's own memory."""
GROWTH_BYTES = 1 << 20
"""And so many bytes besides."""

_KEPT, _SNAPSHOT, _RESTING, _NEW = ".session", ".snapshot", ".resting", ".new"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class StoreFull(Exception):
    """The owner's stored sessions have no room for another; the message names the limit."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The file of a session: as many bytes of it as count, and how its chain goes on, once it was read or written.

    `bound` is what it is bound to besides its owner and image, so that no other is taken for it.
    """

    path: Path
    bound: str
    size: int
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """What was read of a file. Notes come in the order of the turns."""

    checkpoint: Checkpoint
    seen: list[int]
    notes: list[bytes]
    stored: Stored


class SessionStore:
    """Stored sessions and snapshots, a file each in a folder.

    All files of one owner have at most `owner_bytes` bytes. Its methods may be called from any thread; of one file, one
    at a time. What a former process left of sessions without a name is removed.
    """

    def __init__(self, folder: Path, secret: bytes, owner_bytes: int = PoolLimits().stored_bytes) -> None:
        self._folder = folder
        self._sealer = Sealer(secret)
        self._owner_bytes = owner_bytes
        self._lock = threading.Lock()  # of the two below
        self._stored: Counter[str] = Counter()  # bytes, by owner
        self._sizes: dict[Path, int] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in (*folder.glob(f"*{_RESTING}"), *folder.glob(f"*{_NEW}")):
            left.unlink()

    # ---- sessions ------------------------------------------------------------------------------------------------

    def put(
        self,
        checkpoint: Checkpoint,
        owner: str,
        go_on: Callable[[], None] = always,
        *,
        name: str = "",
        beside: Beside = Beside(),  # noqa: B008 - it is frozen
    ) -> Stored:
        """Write all of a session's state to a file of its own; what was kept under the same name is replaced.

        Raises:
            StoreFull: it does not fit beside the owner's others; no part of it stays, and what it was to replace does.
            OSError: it cannot be written; as above.
        """
        if not name:
            return self._put(self._folder / f"{secrets.token_hex(16)}{_RESTING}", "", checkpoint, owner, go_on, beside)
        path = self._path(name, _KEPT)
        return self._put(path, path.name, checkpoint, owner, go_on, beside)

    def _put(
        self, path: Path, bound: str, checkpoint: Checkpoint, owner: str, go_on: Callable[[], None], beside: Beside
    ) -> Stored:
        header = self._sealer.header(owner, checkpoint.image)
        chain = self._sealer.chain(header, owner, checkpoint.image, bound)
        new = path.with_name(path.name + _NEW)
        before = self._uncount(path, owner)  # so that the new form may have its room
        try:
            with _created(new) as file:
                out = _Counted(self, file, path, owner)
                out.write(header)
                records.write(records.whole(checkpoint, beside), out, chain, go_on)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            self._uncount(path, owner)
            self._count(path, owner, before, always=True)
            raise
        return Stored(path, bound, out.size, chain)

    def append(
        self,
        stored: Stored,
        owner: str,
        checkpoint: Checkpoint,
        ended: Ended | None,
        beside: Beside,
        go_on: Callable[[], None] = always,
    ) -> Stored:
        """Add what a turn would change of a session, to which it has not been applied; or, without one, what is beside.

        Where this fails or is not to count, `cut` is to follow.

        Raises:
            StoreFull: it does not fit beside the owner's others.
            OSError: it cannot be written.
        """
        if stored.chain is None:
            raise ValueError(f"{stored.path} was not read yet")
        chain = stored.chain.copy()
        record = records.unchanged(checkpoint, beside) if ended is None else records.changed(checkpoint, ended, beside)
        with stored.path.open("r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != stored.size:  # a process was killed while it wrote
                self.cut(stored, owner)
                file.seek(stored.size)
            out = _Counted(self, file, stored.path, owner)
            records.write(record, out, chain, go_on)
        return replace(stored, size=stored.size + out.size, chain=chain)

    def cut(self, stored: Stored, owner: str) -> None:
        """Take away what was added to a file after this."""
        os.truncate(stored.path, stored.size)
        self._uncount(stored.path, owner)
        self._count(stored.path, owner, stored.size, always=True)

    def is_long(self, stored: Stored, own_bytes: int) -> bool:
        """Whether the file of a session with so many bytes of its own should be written anew."""
        return stored.size > GROWTH * own_bytes + GROWTH_BYTES

    def get(
        self,
        stored: Stored,
        owner: str,
        image: Image,
        corpora: Sequence[Corpus],
        go_on: Callable[[], None] = always,
        limits: Limits | None = None,
    ) -> Restored:
        """Read a session's file. `corpora` are the attached ones, in their order.

        Raises:
            SnapshotRefused: it is not as it was written, or belongs to another owner, image or name; or other corpora
                were attached; or it has more than `limits` say.
            OSError: it cannot be read.
        """
        with stored.path.open("rb") as source:
            chain = self._sealer.chain(source.read(HEADER.size), owner, image, stored.bound)
            found = check(source, chain)
            source.seek(HEADER.size)
            rebuilt = Rebuilt(image, corpora, limits)
            try:
                for _ in range(found.records):
                    rebuilt.read(source, chain, go_on)
                checkpoint = rebuilt.checkpoint()
            except BaseException:
                rebuilt.close()
                raise
        return Restored(checkpoint, rebuilt.seen, rebuilt.notes, replace(stored, size=found.size, chain=found.chain))

    def find(self, name: str, owner: str, image: Image) -> Stored:
        """Return what is kept under a name, as a former process left it. It counts from now on.

        Raises:
            SnapshotRefused: there is nothing; or it is of another owner or image.
            OSError: it cannot be read.
        """
        path = self._path(name, _KEPT)
        stored = self._found(path, path.name, owner, image)
        self._uncount(path, owner)
        self._count(path, owner, stored.size, always=True)
        return stored

    def _found(self, path: Path, bound: str, owner: str, image: Image) -> Stored:
        try:
            with path.open("rb") as source:
                self._sealer.chain(source.read(HEADER.size), owner, image, bound)
                return Stored(path, bound, os.fstat(source.fileno()).st_size)
        except FileNotFoundError:
            raise SnapshotRefused("nothing is stored of it") from None

    def keep_only(self, names: Container[str], prefix: str = "") -> None:
        """Remove what is kept under other names that begin with a prefix: of sessions that ended."""
        self._keep_only(names, _KEPT, prefix)

    def _keep_only(self, names: Container[str], kind: str, prefix: str = "") -> None:
        for path in self._folder.glob(f"{prefix}*{kind}"):
            if path.name.removesuffix(kind) not in names:
                path.unlink(missing_ok=True)

    def remove(self, stored: Stored, owner: str) -> None:
        """Remove a file of this owner's. Does nothing where it was removed already."""
        stored.path.unlink(missing_ok=True)
        self._uncount(stored.path, owner)

    def forget(self, name: str, owner: str) -> None:
        """Remove what is kept under a name, where anything is."""
        self.remove(Stored(self._path(name, _KEPT), "", 0), owner)

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def put_snapshot(
        self, name: str, checkpoint: Checkpoint, owner: str, beside: Beside, go_on: Callable[[], None] = always
    ) -> Stored:
        """Write all of a session's state as a snapshot. Raises as `put`."""
        return self._put(self._path(name, _SNAPSHOT), _SNAPSHOT, checkpoint, owner, go_on, beside)

    def find_snapshot(self, name: str, owner: str, image: Image) -> Stored:
        """Return a snapshot. Raises as `find`."""
        return self._found(self._path(name, _SNAPSHOT), _SNAPSHOT, owner, image)

    def count_snapshot(self, name: str, owner: str) -> None:
        """Count a snapshot that a former process left, where it is there."""
        path = self._path(name, _SNAPSHOT)
        with suppress(FileNotFoundError):
            self.count_as_it_is(path, owner, path.stat().st_size)

    def remove_snapshot(self, name: str, owner: str) -> None:
        """Remove a snapshot of this owner's. Does nothing where it was removed already."""
        self.remove(Stored(self._path(name, _SNAPSHOT), _SNAPSHOT, 0), owner)

    def open_snapshot(self, name: str) -> io.BufferedReader:
        """Open a snapshot's file as it is, to be exported. Raises `OSError` where it cannot be read."""
        return self._path(name, _SNAPSHOT).open("rb")

    @contextmanager
    def incoming(self, name: str, owner: str, images: Mapping[str, Image]) -> Iterator[Incoming]:
        """Take a snapshot's file from elsewhere. It is there once `Incoming.accept` was called, and not without."""
        path = self._path(name, _SNAPSHOT)
        new = path.with_name(path.name + _NEW)
        try:
            with _created(new) as file:
                yield Incoming(_Counted(self, file, path, owner), self._sealer, images, path, owner)
        finally:
            if new.exists():
                new.unlink()
                self._uncount(path, owner)

    def keep_only_snapshots(self, names: Container[str]) -> None:
        """Remove all other snapshots."""
        self._keep_only(names, _SNAPSHOT)

    def _path(self, name: str, kind: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a stored session")
        return self._folder / f"{name}{kind}"

    # ---- bytes ---------------------------------------------------------------------------------------------------

    def stored_bytes(self, owner: str) -> int:
        """Return how many bytes an owner's stored sessions have."""
        with self._lock:
            return self._stored[owner]

    def count(self, path: Path, owner: str, size: int) -> None:
        """Count bytes of an owner's file before they are written.

        Raises:
            StoreFull: they do not fit.
        """
        self._count(path, owner, size, always=False)

    def count_as_it_is(self, path: Path, owner: str, size: int) -> None:
        """Count a file of an owner's that is there already, and has this many bytes."""
        self._uncount(path, owner)
        self._count(path, owner, size, always=True)

    def _count(self, path: Path, owner: str, size: int, *, always: bool) -> None:
        with self._lock:
            stored = self._stored[owner] + size
            if stored > self._owner_bytes and not always:
                raise StoreFull(
                    f"stored sessions may have {self._owner_bytes} bytes in all (stored_bytes), "
                    "and this one does not fit beside the others"
                )
            if size:
                self._stored[owner] = stored
                self._sizes[path] = self._sizes.get(path, 0) + size

    def _uncount(self, path: Path, owner: str) -> int:
        """Count the bytes of a file no longer, and return how many these were."""
        with self._lock:
            size = self._sizes.pop(path, 0)
            self._stored[owner] -= size
            if not self._stored[owner]:
                del self._stored[owner]
            return size


def _created(path: Path) -> io.FileIO:
    """Create a file that is its owner's alone, whatever the umask is."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


class Incoming:
    """A snapshot that comes from elsewhere. Nothing of it is used before all of it was checked."""

    def __init__(
        self, out: _Counted, sealer: Sealer, images: Mapping[str, Image], path: Path, owner: str
    ) -> None:  # fmt: skip
        self._out, self._sealer, self._images = out, sealer, images
        self._new, self._path, self._owner = path.with_name(path.name + _NEW), path, owner

    def write(self, data: bytes) -> None:
        """Take the file's next bytes.

        Raises:
            StoreFull: they do not fit beside the owner's others.
            OSError: they cannot be written.
        """
        self._out.write(data)

    def check(self) -> tuple[str, bytes]:
        """Return the name of the image that the file is of, all of which was sealed here for this owner, and its note.

        Raises:
            SnapshotRefused: it is altered, cut, added to, another owner's or server's, or of none of the images.
        """
        with self._new.open("rb") as source:
            header = source.read(HEADER.size)
            image, chain = self._chain(header)
            found = check(source, chain)
            if found.records != 1 or found.size != self._out.size:
                raise SnapshotRefused("the snapshot was cut or added to")
            source.seek(HEADER.size)
            return image, records.read_note(source, chain)

    def _chain(self, header: bytes) -> tuple[str, Chain]:
        refused = SnapshotRefused("there is no image that it could be of")
        for name, image in self._images.items():
            try:
                return name, self._sealer.chain(header, self._owner, image, _SNAPSHOT)
            except SnapshotRefused as error:
                refused = error
        raise refused

    def accept(self, image: str, corpora: Sequence[Corpus], limits: Limits, go_on: Callable[[], None] = always) -> int:
        """Read all of a file that was checked, and keep it. Returns its size in bytes.

        Raises:
            SnapshotRefused: it has more than `limits` say, or was made with other texts, or cannot be read.
        """
        with self._new.open("rb") as source:
            golden = self._images[image]
            chain = self._sealer.chain(source.read(HEADER.size), self._owner, golden, _SNAPSHOT)
            rebuilt = Rebuilt(golden, corpora, limits)
            try:
                rebuilt.read(source, chain, go_on)
                rebuilt.checkpoint()
            finally:
                rebuilt.close()
        os.replace(self._new, self._path)
        return self._out.size


class _Counted:
    """A file of a store. What is written to it is counted first."""

    def __init__(self, store: SessionStore, out: io.FileIO, path: Path, owner: str) -> None:
        self._store, self._out, self._path, self._owner = store, out, path, owner
        self.size = 0

    def write(self, data: bytes) -> int:
        """Write all of it."""
        self._store.count(self._path, self._owner, len(data))
        self.size += len(data)
        left = memoryview(data)
        while left:
            left = left[self._out.write(left) :]
        return len(data)
