"""Uploads to a server, and, to compare, the same stream to one that takes it and does nothing: each in its process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import grpc
from rlm.v1 import context_pb2, context_pb2_grpc

from benchmarks.progress import Progress

CHUNK = 1 << 20
ROUNDS = 5
LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was measured. MB of a million bytes."""

    mb_s: float
    empty_mb_s: float
    together_mb_s: float
    growth_mb: float
    """What the server's memory grew by, at most, while many uploads were under way."""


@dataclass(frozen=True, slots=True)
class _Server:
    pid: int
    address: str
    key: str


def uploaded(size: int, together: int, each: int, progress: Progress) -> Uploaded:
    """Upload texts of `size` bytes one at a time, and then `together` of `each` bytes at once."""
    ours, empty = [], []
    with _serving(_OURS) as server, _serving(_EMPTY) as nothing:
        for round_ in range(ROUNDS):
            progress(f"round {round_ + 1} of {ROUNDS}: uploading {size / 1e6:,.0f} MB, to the server and to nothing")
            text = _Text(size, round_)
            ours.append(_seconds(server, text))
            empty.append(_seconds(nothing, text))
        progress(f"{together} uploads of {each / 1e6:,.0f} MB at once")
        before, highest, over = _private(server.pid), [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                highest[0] = max(highest[0], _private(server.pid))

        watcher = threading.Thread(target=watch)
        texts = [_Text(each, 100 + number) for number in range(together)]
        watcher.start()
        threads = [threading.Thread(target=_seconds, args=(server, text)) for text in texts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        over.set()
        watcher.join()
    growth = max(0, highest[0] - before) / 1e6
    return Uploaded(size / median(ours) / 1e6, size / median(empty) / 1e6, together * each / seconds / 1e6, growth)


class _Text:
    """A text that is made as it is sent; no two of different numbers are the same."""

    def __init__(self, size: int, number: int) -> None:
        self.size = size
        lines = "".join(f"Line {n:09d} of upload {number:04d}, written to be sent.\n" for n in range(CHUNK // 50))
        self._piece = lines.encode()[:CHUNK]
        made = hashlib.sha256()
        for piece in self._pieces():
            made.update(piece)
        self.sha256 = made.hexdigest()

    def _pieces(self) -> Iterator[bytes]:
        for at in range(0, self.size, CHUNK):
            yield self._piece[: min(CHUNK, self.size - at)]

    def messages(self) -> Iterator[context_pb2.UploadContextRequest]:
        """Yield the messages of the upload."""
        header = context_pb2.UploadHeader(name="text", size_bytes=self.size, sha256=self.sha256)
        yield context_pb2.UploadContextRequest(header=header)
        at = 0
        for piece in self._pieces():
            yield context_pb2.UploadContextRequest(chunk=context_pb2.UploadChunk(offset=at, data=piece))
            at += len(piece)


def _seconds(server: _Server, text: _Text) -> float:
    with grpc.insecure_channel(server.address) as channel:
        stub = context_pb2_grpc.ContextServiceStub(channel)
        started = time.perf_counter()
        stub.UploadContext(text.messages(), metadata=(("authorization", f"Bearer {server.key}"),))
        return time.perf_counter() - started


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "SwapPss:")))


@contextmanager
def _serving(program: str) -> Iterator[_Server]:
    with TemporaryDirectory(prefix="bench-uploads-") as folder:
        environment = {**os.environ, "RLM_DATA_DIR": folder}
        root = str(Path(__file__).parents[1])
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address, key = process.stdout.readline().split()
                yield _Server(process.pid, address, key)
            finally:
                process.terminate()


_OURS = f"""
import asyncio
from rlm_server.config.settings import Settings
from rlm_server.server import serving

async def main():
    async with serving(Settings.load(listen={LOOPBACK!r}, unconfined=True)) as running:
        print(running.address, running.key, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

_EMPTY = f"""
import asyncio
import grpc
from rlm.v1 import context_pb2, context_pb2_grpc
from rlm_server.api.transport import OPTIONS

class Nothing(context_pb2_grpc.ContextServiceServicer):
    async def UploadContext(self, request_iterator, context):
        async for request in request_iterator:
            len(request.chunk.data)
        return context_pb2.UploadContextResponse()

async def main():
    server = grpc.aio.server(options=OPTIONS)
    context_pb2_grpc.add_ContextServiceServicer_to_server(Nothing(), server)
    port = server.add_insecure_port({LOOPBACK!r})
    await server.start()
    print(f"127.0.0.1:{{port}}", "none", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""
