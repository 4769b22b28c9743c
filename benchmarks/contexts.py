"""What contexts cost: attaching, sharing, scanning, searching, uploading, and a corpus larger than a guest's addresses.

Ends with one line of JSON. `make bench-contexts`; with ARGS=--large the corpus has 10 GiB, and uploads 1 GiB each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.memory import children
from benchmarks.progress import Progress
from benchmarks.uploads import Uploaded, uploaded
from rlm_server.contexts.search import search
from sandbox.corpora.corpus import Corpus, Kind, Writer
from sandbox.corpora.text import Form
from sandbox.door import HostCall, Json
from sandbox.limits import Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.vm.image import Loaded, prepare, standard_specs

MIB, GIB = 1 << 20, 1 << 30
SHARING = 20
"""Sessions that read one text."""
ROUNDS = 7
NEEDLE = "needle-4711"
PIECE = 1 << 16
"""What is written at once, as the server writes texts."""
LIMITS = Limits(turn_seconds=600.0)
LINE = "Line {:011d} of a text that nobody could read in one go, and nobody has to.\n"


@dataclass(slots=True)
class Findings:
    """What was measured, by the names of the result."""

    figures: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """Return the figures, a line each."""
        width = max(map(len, self.figures))
        return "\n".join(f"{name.ljust(width)}  {value:,.4g}" for name, value in self.figures.items())


def prose(size: int) -> Iterator[bytes]:
    """Yield pieces of text, `size` bytes in all, no two lines alike, and the needle at the very end."""
    made, number = 0, 0
    end = NEEDLE.encode()
    while made < size - len(end):
        lines = "".join(LINE.format(n) for n in range(number, number + 800)).encode()
        piece = lines[: min(PIECE, size - len(end) - made)]
        number, made = number + 800, made + len(piece)
        yield piece
    yield end


@contextmanager
def text_of(folder: Path, size: int) -> Iterator[Corpus]:
    """Write one text of `size` ASCII characters as the store does, and yield it."""
    with (folder / "text").open("wb", buffering=0) as out:
        writer = Writer(out, Kind.TEXT)
        writer.write(Form.ASCII, size, prose(size))
        (folder / "text-index").write_bytes(writer.finish(["text"]))
    try:
        yield Corpus(str(folder / "text"), str(folder / "text-index"))
    finally:
        (folder / "text").unlink()


@contextmanager
def documents_of(folder: Path, count: int, size: int) -> Iterator[Corpus]:
    """Write `count` documents, `size` bytes in all: every tenth is ten times as long as the others."""
    unit = size // (count // 10 * 19 + count % 10 * 10 + 10)
    with (folder / "documents").open("wb", buffering=MIB) as out:
        writer = Writer(out, Kind.DOCUMENTS)
        filler = "".join(LINE.format(n) for n in range(2 * 10 * unit // 70 + 2)).encode()
        for number in range(count):
            length = unit * (10 if number % 10 == 0 else 1)
            head = f"Document {number:07d} is of kind {number % 7}.\n".encode()
            at = number * 37 % (len(filler) - length)
            writer.write(Form.ASCII, length, [head, filler[at : at + length - len(head)]])
        (folder / "documents-index").write_bytes(writer.finish(f"{number:07d}.txt" for number in range(count)))
    try:
        yield Corpus(str(folder / "documents"), str(folder / "documents-index"))
    finally:
        (folder / "documents").unlink()


async def turn(session: WorkerSession, code: str) -> str:
    """Run a turn that must succeed, and return what it printed."""
    ended = await session.execute(code, _nothing, lambda *_: None)
    if ended.error:
        raise RuntimeError(f"{code}: {ended.error}")
    return ended.stdout.removesuffix("\n")


async def _nothing(_: HostCall) -> Json:
    return None


def resident(pid: int) -> int:
    """Return the bytes a process has resident, what it shares counted in proportion."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def of_workers() -> int:
    """Return the bytes that all workers have resident."""
    return sum(resident(pid) for pid in children(os.getpid()))


async def of_one_text(loaded: Loaded, folder: Path, size: int, findings: Findings, progress: Progress) -> None:
    """Measure attaching, scanning, searching and sharing one text."""
    progress(f"writing a text of {size // MIB:,} MiB")
    with text_of(folder, size) as corpus:
        pool = WorkerPool(loaded, sessions=2 * SHARING, spares=0, unconfined=True)
        try:
            native = corpus[0].read(0, size) if size < 2 * MIB else _native(corpus)
            attach, scan, own, searched = [], [], [], []
            for round_ in range(ROUNDS):
                progress(f"round {round_ + 1} of {ROUNDS}: attach, scan, search")
                session = await pool.create("a", "core", LIMITS)
                await turn(session, "import time")
                started = time.perf_counter()
                await session.attach("context", corpus)
                attach.append(time.perf_counter() - started)
                code = f"s = time.perf_counter(); at = context.find({NEEDLE!r}); print(at, time.perf_counter() - s)"
                at, seconds = (await turn(session, code)).split()
                if int(at) != size - len(NEEDLE):
                    raise RuntimeError(f"the needle was found at {at}")
                scan.append(float(seconds))
                started = time.perf_counter()
                native.find(NEEDLE)
                own.append(time.perf_counter() - started)
                started = time.perf_counter()
                matches = (await asyncio.to_thread(search, corpus, NEEDLE, None, 10)).matches
                searched.append(time.perf_counter() - started)
                if [match.start for match in matches] != [size - len(NEEDLE)]:
                    raise RuntimeError(f"the search found {matches}")
                await session.close()
            del native
            findings.figures["attach_1gib_ms"] = median(attach) * 1e3
            findings.figures["scan_ratio"] = median(scan) / median(own)
            findings.figures["scan_gb_s"] = size / median(scan) / 1e9
            findings.figures["search_gb_s"] = size / median(searched) / 1e9
            progress(f"{SHARING} sessions read the same text")
            before = of_workers()
            sessions = [await pool.create("a", "core", LIMITS) for _ in range(SHARING)]
            for session in sessions:
                await session.attach("context", corpus)
                await turn(session, f"assert context.find({NEEDLE!r}) == {size - len(NEEDLE)}")
            findings.figures["shared_rss_ratio"] = (of_workers() - before) / size
        finally:
            await pool.close()


def _native(corpus: Corpus) -> str:
    with corpus[0].viewed() as view:
        return str(view, "ascii")


async def of_documents(
    loaded: Loaded, folder: Path, count: int, size: int, findings: Findings, progress: Progress
) -> None:
    """Sample, search and aggregate a corpus of many documents, and see whether memory is steady."""
    progress(f"writing {count:,} documents, {size / GIB:.3g} GiB")
    with documents_of(folder, count, size) as corpus:
        pool = WorkerPool(
            loaded, sessions=4, spares=0, store=SessionStore(folder / "sessions", b"k" * 32), unconfined=True
        )
        try:
            session = await pool.create("a", "core", LIMITS)
            started = time.perf_counter()
            await session.attach("context", corpus)
            findings.figures["corpus_attach_ms"] = (time.perf_counter() - started) * 1e3
            sample = "import random, collections; random.seed(1)\n_ = [len(d) for d in random.sample(context, 1000)]"
            findings.figures["corpus_sample_1000_ms"] = await _seconds(session, sample) * 1e3
            aggregate = "kinds = collections.Counter(d[28 : d.index('.')] for d in context)"
            held = []
            for round_ in range(3):
                progress(f"aggregating every document, {round_ + 1} of 3")
                seconds = await _seconds(session, aggregate)
                held.append(_private(next(children(os.getpid()))))
            findings.figures["corpus_aggregate_s"] = seconds
            expected = {str(kind): len(range(kind, count, 7)) for kind in range(7)}
            if await turn(session, f"dict(kinds) == {expected!r}") != "True":
                raise RuntimeError(f"the documents were counted as {await turn(session, 'kinds')}")
            findings.figures["corpus_memory_growth_mb"] = (held[-1] - held[0]) / 1e6
            findings.figures["corpus_memory_mb"] = held[-1] / 1e6
            progress("searching every document")
            started = time.perf_counter()
            matches = (await asyncio.to_thread(search, corpus, f"Document {count - 1:07d}", None, 10)).matches
            findings.figures["corpus_search_s"] = time.perf_counter() - started
            if [match.document for match in matches] != [count - 1]:
                raise RuntimeError(f"the search found {matches}")
        finally:
            await pool.close()
    findings.figures["corpus_documents"], findings.figures["corpus_gib"] = count, size / GIB


async def _seconds(session: WorkerSession, code: str) -> float:
    started = time.perf_counter()
    await turn(session, code)
    return time.perf_counter() - started


def _private(pid: int) -> int:
    """Return the bytes of a process that no file backs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "SwapPss:")))


def uploads(size: int, together: int, each: int, findings: Findings, progress: Progress) -> None:
    """Measure uploads against an empty stream, and many at once."""
    taken: Uploaded = uploaded(size, together, each, progress)
    findings.figures["upload_mb_s"] = taken.mb_s
    findings.figures["empty_stream_mb_s"] = taken.empty_mb_s
    findings.figures["upload_ratio"] = taken.mb_s / taken.empty_mb_s
    findings.figures["uploads_together"] = together
    findings.figures["uploads_together_mb_s"] = taken.together_mb_s
    findings.figures["uploads_together_growth_mb"] = taken.growth_mb


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="a corpus of 10 GiB, and 8 uploads of 1 GiB each")
    parser.add_argument("--folder", type=Path, help="where the texts are written; a temporary folder otherwise")
    parser.add_argument("--small", action="store_true", help="everything small, to see whether it works")
    options = parser.parse_args()
    one, corpus, each = (8 * MIB, 64 * MIB, 8 * MIB) if options.small else (GIB, GIB, 256 * MIB)
    if options.large:
        corpus, each = 10 * GIB, GIB
    started, findings = time.perf_counter(), Findings()

    def progress(text: str) -> None:
        print(f"• {time.perf_counter() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    loaded = prepare(standard_specs({}))
    with TemporaryDirectory(dir=options.folder, prefix="bench-contexts-") as folder:
        asyncio.run(of_one_text(loaded, Path(folder), one, findings, progress))
        asyncio.run(of_documents(loaded, Path(folder), 2_000 if options.small else 100_000, corpus, findings, progress))
    uploads(one, 8, each, findings, progress)
    loaded.program.close()
    print(findings.table())
    print(json.dumps({name: round(value, 4) for name, value in findings.figures.items()}))


if __name__ == "__main__":
    main()
