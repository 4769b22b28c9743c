"""Fingerprints: a file beside a corpus that tells, for any few characters, where they may stand in it.

Of every document, `GRAM` characters are hashed at every `STEP`-th character: a sample. Any `WINDOW` characters in a row
of a document hold a whole sample. So whoever looks up every `GRAM` characters of another text finds each window that
both have. A hash is of code points: it is the same whatever form either text has. A document shorter than a window has
no samples.

Layout of the file, little-endian, in numbers of 8 bytes but for the header and the rows:

    header   `_HEADER`
    first    for each document that has samples, the number of its first; then the number of all, n
    rows     for each of these documents, `_ROW`
    entries  n, ascending: the upper bits of a sample's hash above the sample's number, which has as many bits as n
    table    for each value of a hash's first `bits` bits, how many entries are below it; then n

The checksum covers all but the entries. If entries are damaged, samples are missed, or found in wrong places.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from sandbox.corpora.corpus import Corpus

GRAM = 24
"""Characters of a sample. With 16 there are 20 % fewer samples, and in prose five times as many places to look at."""

STEP = 41
"""Characters from one sample of a document to its next."""

WINDOW = GRAM + STEP - 1
"""So many characters in a row, of a document that has as many, hold a sample."""

FILE = "fingerprints"
SEGMENT = 1 << 22
"""Samples that are sorted at once: those of 164 MiB of ASCII. It decides how much memory building needs."""

_MARK, _VERSION = b"RLMF", 1
_HEADER = struct.Struct("<4sHHQQQQI20x")  # mark, version, bits, documents, which, rows, samples, checksum
_ROW = np.dtype([("at", "<i8"), ("number", "<u4"), ("characters", "<u4"), ("width", "<u4"), ("spare", "<u4")])
_BLOCK = 1 << 15
"""Samples that are hashed at once: few enough for a processor's cache."""

_ENTRIES_A_BUCKET, _MAX_BITS = 8, 22
_CUTS = 1 << 10
_IDENTIFYING = 64
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[Any]
"""Code points, in unsigned numbers of 1, 2 or 4 bytes."""


class FingerprintsUnusable(Exception):
    """The corpus has no usable fingerprints. They must be built anew."""


class BuildCancelled(Exception):
    """The caller cancelled the building."""


class Places(NamedTuple):
    """Where samples stand: the rows of their documents, and the numbers of their first characters."""

    row: Integers
    start: Integers


def hashes(codes: Codes) -> Hashes:
    """Return the hash of each row of a table `GRAM` wide.

    It is a polynomial modulo 2**64 whose bits are then mixed, as splitmix64 does, so that the first bits are as good.
    """
    hashed = np.zeros(len(codes), np.uint64)
    for start in range(0, len(codes), _BLOCK):
        block, mixed = codes[start : start + _BLOCK], hashed[start : start + _BLOCK]
        for column in range(GRAM):
            mixed *= _FACTOR
            mixed += block[:, column]
        for shift, factor in zip((30, 27), _MIX, strict=True):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= factor
        mixed ^= mixed >> np.uint64(31)
    return hashed


def grams(codes: Codes) -> Codes:
    """View code points, at least `GRAM`, as a table: a row for each place where `GRAM` of them begin."""
    return np.lib.stride_tricks.sliding_window_view(codes, GRAM)


class Characters:
    """The characters of a corpus's file, mapped: `width[w]` has all of it as characters of `w` bytes.

    The mapping ends with the last array that shows part of it.
    """

    def __init__(self, corpus: Corpus) -> None:
        """Map the file.

        Raises:
            OSError: it cannot be opened.
            ValueError: it is empty.
        """
        with corpus.names.opened() as fd:
            self._mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        size = len(self._mapped)
        self.width: dict[int, Codes] = {
            width: np.frombuffer(self._mapped, f"<u{width}", size // width) for width in (1, 2, 4) if size >= width
        }

    def forget(self) -> None:
        """Release the pages that were read, so that they no longer count as memory of this process."""
        self._mapped.madvise(mmap.MADV_DONTNEED)


class Documents:
    """The documents that have samples: for each, where it is (a row) and the number of its first sample."""

    def __init__(self, first: Integers, rows: npt.NDArray[np.void]) -> None:
        self.first = first
        self.number, self.characters, self.width = rows["number"], rows["characters"], rows["width"]
        self.at = rows["at"]
        """The first character's place among the file's characters of the document's width."""
        self.samples = int(first[-1])

    def places(self, samples: Integers) -> Places:
        """Return where the samples of these numbers stand."""
        row = np.searchsorted(self.first, samples, "right") - 1
        return Places(row, (samples - self.first[row]) * STEP)

    def hashes(self, characters: Characters, start: int, end: int) -> Hashes:
        """Hash the samples from number `start` up to `end`."""
        row, place = self.places(np.arange(start, end))
        place += self.at[row]
        hashed, width_of = np.empty(end - start, np.uint64), self.width[row]
        for width, text in characters.width.items():
            chosen = np.flatnonzero(width_of == width)
            if len(chosen):
                hashed[chosen] = hashes(grams(text)[place[chosen]])
        return hashed


def build(corpus: Corpus, folder: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Make the fingerprints of a corpus in a folder, where nobody else makes them at the same time.

    However large the corpus is, it needs about 200 MiB of memory, and 32 bytes for each document. Until it is done, it
    needs twice the room in the folder that the result takes.

    Raises:
        BuildCancelled: `cancelled` said so; nothing is left.
        OSError: the corpus cannot be read, or the folder not be written.
        ValueError: a document does not begin at a multiple of its width.
    """
    first, rows = _documents(corpus)
    documents = Documents(first, rows)
    samples = documents.samples
    bits = min(max((samples // _ENTRIES_A_BUCKET).bit_length(), 1), _MAX_BITS)
    counts = np.zeros(1 << bits, np.int64)
    building = folder / f"{FILE}.building"
    try:
        with building.open("wb") as out, tempfile.TemporaryFile(dir=folder) as runs:
            out.write(bytes(_HEADER.size))
            out.write(first.data)
            out.write(rows.data)
            _write_runs(corpus, documents, runs, cancelled)
            for part in _merged(runs, samples):
                if cancelled():
                    raise BuildCancelled
                out.write(part.data)
                counts += np.bincount((part >> np.uint64(64 - bits)).astype(np.int64), minlength=len(counts))
            table = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
            out.write(table.data)
            head = bits, *_identity(corpus), len(rows), samples
            out.seek(0)
            out.write(_HEADER.pack(_MARK, _VERSION, *head, _checksum(head, first, rows, table)))
            out.flush()
            os.fsync(out.fileno())  # otherwise a crash may leave a file of the right size that holds zeros
        building.replace(folder / FILE)
    finally:
        building.unlink(missing_ok=True)


def _documents(corpus: Corpus) -> tuple[Integers, npt.NDArray[np.void]]:
    def described() -> Iterator[tuple[int, int, int, int, int]]:
        for number, text in enumerate(corpus):
            if text.characters >= WINDOW:
                at, over = divmod(text.offset, text.form.width)
                if over:
                    raise ValueError(f"document {number} does not begin at a multiple of its width")
                yield at, number, text.characters, text.form.width, 0

    rows = np.fromiter(described(), _ROW)
    first = np.zeros(len(rows) + 1, np.int64)
    np.cumsum((rows["characters"] - np.uint32(GRAM)) // np.uint32(STEP) + np.uint32(1), out=first[1:])
    return first, rows


def _write_runs(corpus: Corpus, documents: Documents, out: BinaryIO, cancelled: Callable[[], bool]) -> None:
    """Write the entries, each `SEGMENT` of them sorted."""
    samples = documents.samples
    lower = np.uint64(samples.bit_length())
    characters = Characters(corpus)
    for start in range(0, samples, SEGMENT):
        entries = np.empty(min(SEGMENT, samples - start), np.uint64)
        for done in range(0, len(entries), _BLOCK):
            if cancelled():
                raise BuildCancelled
            low, high = start + done, start + min(done + _BLOCK, len(entries))
            hashed = documents.hashes(characters, low, high) >> lower << lower
            entries[done : done + _BLOCK] = hashed | np.arange(low, high, dtype=np.uint64)
        entries.sort()
        out.write(entries.data)
        characters.forget()
    out.flush()


def _merged(written: BinaryIO, samples: int) -> Iterator[Hashes]:
    """Yield all entries in order, about `SEGMENT` at a time.

    A few entries of each run, at equal distances, tell where to cut the runs. So the parts are of about one size even
    where most entries have the same hash.
    """
    if not samples:
        return
    mapped = mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ)
    entries = np.frombuffer(mapped, np.uint64)
    runs = [entries[start : start + SEGMENT] for start in range(0, samples, SEGMENT)]

    def of_each(read: Callable[[Hashes], npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        results = []
        for run in runs:
            results.append(read(run))
            mapped.madvise(mmap.MADV_DONTNEED)  # otherwise all of it would count as memory of this process
        return results

    apart = max(1, SEGMENT // _CUTS)
    some = np.sort(np.concatenate(of_each(lambda run: run[::apart].copy())))
    cuts = some[SEGMENT // apart :: SEGMENT // apart]
    edges = of_each(lambda run: np.concatenate([[0], run.searchsorted(cuts), [len(run)]]))
    for number in range(len(cuts) + 1):
        part = np.concatenate([run[edge[number] : edge[number + 1]] for run, edge in zip(runs, edges, strict=True)])
        part.sort()
        mapped.madvise(mmap.MADV_DONTNEED)
        yield part


def _identity(corpus: Corpus) -> tuple[int, int]:
    """Return a cheap identity of a corpus: how many documents it has, and a checksum of a few of them."""
    some = range(0, len(corpus), max(1, len(corpus) // _IDENTIFYING))
    texts = [*(corpus[number] for number in some), corpus.names]
    described = repr([(text.offset, text.characters, text.form.name) for text in texts])
    return len(corpus), zlib.crc32(described.encode())


def _checksum(head: tuple[int, ...], *parts: npt.NDArray[Any]) -> int:
    checksum = zlib.crc32(struct.pack("<5Q", *head))
    for part in parts:
        checksum = zlib.crc32(part.data, checksum)
    return checksum


class Fingerprints:
    """The fingerprints of a corpus, mapped. Any number of threads may look things up."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        """Open what `build` made.

        Raises:
            FingerprintsUnusable: there are none, or damaged ones, or those of another version or corpus.
            OSError: they cannot be read.
        """
        try:
            with (folder / FILE).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # mmap's for an empty file
            raise FingerprintsUnusable("there are no fingerprints of this corpus") from None
        if len(mapped) < _HEADER.size:
            raise FingerprintsUnusable("the fingerprints are cut short")
        mark, version, *head, checksum = _HEADER.unpack_from(mapped)
        bits, documents, which, rows, samples = head
        if (mark, version) != (_MARK, _VERSION) or (documents, which) != _identity(corpus):
            raise FingerprintsUnusable("the fingerprints are of another version, or of another corpus")
        sizes = 8 * (rows + 1), _ROW.itemsize * rows, 8 * samples, 8 * ((1 << min(bits, _MAX_BITS)) + 1)
        if len(mapped) != _HEADER.size + sum(sizes):
            raise FingerprintsUnusable("the fingerprints are cut short, or were added to")
        starts = [_HEADER.size + sum(sizes[:number]) for number in range(4)]
        first = np.frombuffer(mapped, "<i8", rows + 1, starts[0])
        described = np.frombuffer(mapped, _ROW, rows, starts[1])
        self._entries = np.frombuffer(mapped, "<u8", samples, starts[2])
        self._table = np.frombuffer(mapped, "<i8", offset=starts[3])
        if checksum != _checksum(tuple(head), first, described, self._table) or first[-1] != samples:
            raise FingerprintsUnusable("the fingerprints are damaged")
        mapped.madvise(mmap.MADV_RANDOM)  # otherwise each page that is read brings 31 others
        self.documents = Documents(first, described)
        self._shift = np.uint64(64 - bits)
        self._lower = np.uint64((1 << samples.bit_length()) - 1)
        """The bits of an entry that number the sample; all set, they number none."""

    def look_up(self, hashed: Hashes) -> tuple[Integers, Integers, Integers]:
        """Find entries by hashes.

        Returns:
            which of the hashes have any; of each of these, the first entry, and how many there are.
        """
        order = np.argsort(hashed)  # so that the file is read from its front to its back
        hashed = hashed[order]
        bucket = (hashed >> self._shift).astype(np.int64)
        first, end = self._table[bucket], self._table[bucket + 1]
        present = np.flatnonzero(first < end)
        sought, first, end = hashed[present] & ~self._lower, first[present], end[present]
        first = self._at_least(sought, first, end)
        same = np.flatnonzero(first < end)
        same = same[self._entries[first[same]] & ~self._lower == sought[same]]
        present, sought, first, end = present[same], sought[same], first[same], end[same]
        return order[present], first, self._at_least(sought | self._lower, first, end) - first

    def _at_least(self, sought: Hashes, first: Integers, end: Integers) -> Integers:
        """Return, of each range of entries, the first that is not below what is sought, or the range's end."""
        result = first.copy()
        going = np.arange(len(result))
        while len(going):
            middle = (first + end) >> 1
            below = self._entries[middle] < sought
            first, end = np.where(below, middle + 1, first), np.where(below, end, middle)
            result[going] = first
            left = np.flatnonzero(first < end)
            going, sought, first, end = going[left], sought[left], first[left], end[left]
        return result

    def places(self, entries: Integers) -> tuple[Integers, Places]:
        """Return where the samples of entries stand.

        Returns:
            which of the entries are sound; of these, the places.
        """
        numbers = (self._entries[entries] & self._lower).astype(np.int64)
        sound = np.flatnonzero(numbers < self.documents.samples)
        return sound, self.documents.places(numbers[sound])
