"""The process that runs one owner's guests; its arguments are the descriptors of its two sockets.

It is started by exec with an empty environment and two sockets, loads what it is told to, and confines itself before it
runs anything. It holds no secret and no state that cannot be lost: after every turn the server has the pages that
changed. Each running turn has a thread; the main thread reads frames.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from sandbox import instance, jail, memory, wasi
from sandbox.door import HostCall, Reply
from sandbox.engine import THREAD_STACK_BYTES, Program
from sandbox.files import Files, Inode
from sandbox.image import STDLIB_PATH
from sandbox.instance import Image, Mapped
from sandbox.limits import Limits
from sandbox.session import Session
from sandbox.snapshot import Snapshot, difference, read_files, write_files
from sandbox.text import Form, Text
from sandbox.turn import Turn
from sandbox.wire import Channel, Frame, Kind


class _Served:
    """A session of this worker, with the thread that runs its turns when it has any."""

    def __init__(self, session: Session, channel: Channel, number: int) -> None:
        self.session = session
        self._channel = channel
        self._number = number
        self._sent = session.checkpoint
        self._calls: dict[int, Future[Reply]] = {}
        self._last_call = 0
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: int, work: Callable[[], Turn]) -> None:
        """Run a turn on the session's thread and report it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._work.put(lambda: self._report(request, work))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _report(self, request: int, work: Callable[[], Turn]) -> None:
        try:
            turn = work()
        except MemoryError as error:
            self._channel.send(Frame(Kind.FAILED, self._number, request, {"message": str(error)}))
            return
        now, before = self.session.checkpoint, self._sent
        changes = difference(before, now)
        said: dict[str, Any] = {"turn": asdict(turn), "size": now.size, "runs": changes.changed, "gone": changes.gone}
        pages = changes.contents
        said["mapped"] = [mapped.address for mapped in now.mapped]
        if now.files != before.files:
            said["files"], contents = write_files(now.files)
            pages += contents
        self._sent = now
        self._channel.send(Frame(Kind.DONE, self._number, request, said, pages))

    def ask(self, call: HostCall) -> Future[Reply]:
        """Send a request of the guest's to the server."""
        self._last_call += 1
        future: Future[Reply] = Future()
        number = self._last_call
        self._calls[number] = future
        future.add_done_callback(lambda _: self._calls.pop(number, None))
        self._channel.send(Frame(Kind.CALL, self._number, number, data=call.frame))
        return future

    def answered(self, number: int, reply: bytes) -> None:
        """Take the server's reply to a request."""
        future = self._calls.get(number)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(Reply(reply))

    def printed(self, stream: int, data: bytes) -> None:
        """Send on what the guest printed."""
        self._channel.send(Frame(Kind.OUTPUT, self._number, stream, data=data))

    def close(self) -> None:
        """End the session and its thread; a running turn is stopped first."""
        self.session.interrupt()
        self._work.put(None)
        if self._thread:
            self._thread.join()
        self.session.close()


class Worker:
    """Serves frames until the server goes away."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._served: dict[int, _Served] = {}
        self._program: Program
        self._images: dict[str, Image] = {}

    def serve(self) -> None:
        """Serve."""
        while (frame := self._channel.receive()) is not None:
            served = self._served.get(frame.session)
            match frame.kind:
                case Kind.LOAD:
                    self._load(frame)
                case Kind.PING:
                    self._channel.send(Frame(Kind.READY))
                case Kind.OPEN:
                    self._open(frame)
                case Kind.ATTACH if served:
                    self._attach(served, frame)
                case Kind.EXECUTE if served:
                    self._execute(served, frame)
                case Kind.REPLY if served:
                    served.answered(frame.number, frame.data)
                case Kind.INTERRUPT if served:
                    served.session.interrupt()
                case Kind.CLOSE if served:
                    del self._served[frame.session]
                    served.close()

    def _load(self, frame: Frame) -> None:
        """Load the program and its images, use one so that nothing is left to be loaded, and go to jail."""
        said = frame.said
        stdlib = self._channel.descriptor(said["stdlib"])
        files = Files(Limits(), {STDLIB_PATH: Inode(2, mmap(stdlib, 0, access=ACCESS_READ))})
        self._program = Program(Path(said["compiled"]), instance.FUNCTIONS, wasi.missing)
        for name, image in said["images"].items():
            fd = self._channel.descriptor(image["descriptor"])
            self._images[name] = Image(name, fd, image["size"], files)
        problem = ""
        try:
            _rehearse(self._program, next(iter(self._images.values())))
            self._program.clock.close()  # the jail is for a single thread and those it starts later
            jail.confine()
            jail.self_test()
        except jail.JailError as error:
            problem = str(error)
        self._channel.send(Frame(Kind.READY, said={"unconfined": problem}))

    def _open(self, frame: Frame) -> None:
        said = frame.said
        limits = Limits(**said["limits"])
        image = self._images[said["image"]]
        mapped = tuple(Mapped(m["address"], self._text(m)) for m in said["mapped"])
        runs = tuple((at, size) for at, size in said["runs"])
        own = sum(size for _, size in runs)
        files = read_files(said["files"], frame.data[own:], image.files)
        start = Snapshot(image, said["size"], runs, frame.data[:own], files, mapped)
        self._served[frame.session] = _Served(Session(self._program, start, limits), self._channel, frame.session)

    def _text(self, said: dict[str, Any]) -> Text:
        return Text(self._channel.descriptor(said["descriptor"]), Form[said["form"]], said["characters"])

    def _attach(self, served: _Served, frame: Frame) -> None:
        name, text = frame.said["name"], self._text(frame.said)
        served.submit(frame.number, lambda: served.session.attach(name, text))

    def _execute(self, served: _Served, frame: Frame) -> None:
        code = frame.data.decode("utf-8", "surrogatepass")
        served.submit(frame.number, lambda: served.session.execute(code, served.ask, served.printed))


def _rehearse(program: Program, image: Image) -> None:
    """Go once through everything a turn may need, errors included, while modules can still be loaded."""
    here, there = socket.socketpair()
    first, second = socket.socketpair()
    served = _Served(Session(program, image, Limits(turn_seconds=0.05)), Channel(here, first), 0)
    session = served.session
    made = memory.sealed(b"text\0", "rehearsal")

    def turns() -> None:
        session.attach("text", Text(made, Form.ASCII, 4))
        for code in ("open('/tmp/x', 'w').write('x')", "1 / 0", "while True: pass", "import os; os._exit(1)"):
            session.execute(code, served.ask, served.printed)
        read_files(*write_files(session.checkpoint.files), image.files)
        asdict(session.execute("x = 1"))

    thread = threading.Thread(target=turns)
    thread.start()
    thread.join()
    session.close()
    for closing in (here, there, first, second):
        closing.close()
    os.close(made)


def main() -> None:
    """Serve on the two sockets whose descriptors are the arguments."""
    frames, descriptors = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
    threading.stack_size(THREAD_STACK_BYTES)
    Worker(Channel(frames, descriptors)).serve()
