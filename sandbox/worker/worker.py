"""The process that runs one owner's guests. Its arguments are the descriptors of its two sockets.

It is started by exec with an empty environment and two sockets. It loads what the server names, and confines itself
before it runs anything. It holds no secret, and no state that would be missed if the process died: after every turn the
pages that changed are in a file that the server has too.

Its threads are in `sandbox.worker.threads`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path

from sandbox.corpora.corpus import BLOCK, Corpus, in_memory
from sandbox.corpora.corpus import Kind as CorpusKind
from sandbox.door import HostCall, Reply
from sandbox.inputs import Inputs
from sandbox.limits import Limits
from sandbox.memory import memory, missing, pagetable
from sandbox.turn import OutputListener, Turn
from sandbox.vm import instance, wasi
from sandbox.vm.chance import Noted
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.engine import THREAD_STACK_BYTES, Program
from sandbox.vm.files import STDLIB_PATH, Files, Inode
from sandbox.vm.instance import Image
from sandbox.vm.packages import mounted
from sandbox.vm.session import Session
from sandbox.vm.waiting import Pausable
from sandbox.wire.files import read_files, write_files
from sandbox.wire.frames import Channel, Frame, Kind
from sandbox.wire.sessions import SentState, read_corpus, read_session, write_end, write_layout
from sandbox.wire.turns import read_turn_request, write_failure
from sandbox.worker import jail
from sandbox.worker.places import Place, Places
from sandbox.worker.threads import LeaderFollowers, Work

MAX_OUTPUT = 1 << 14
"""Bytes of output that wait for the next tick, request or end of the turn."""


class _Served:
    """A session of this worker. It is also how the session's guest waits: by reading frames from the server."""

    def __init__(
        self,
        start: Checkpoint,
        limits: Limits,
        program: Program,
        threads: LeaderFollowers,
        places: Places,
        channel: Channel,
        number: int,
    ):
        self._threads = threads
        self._place = Place(places)
        self._channel = channel
        self._number = number
        self._sent = SentState(start.files, start.layout)
        self._reported: list[int] = []  # for each corpus, the blocks that were reported to the server
        self._calls: dict[int, Future[Reply]] = {}
        self._last_call = 0
        self._sending = threading.Lock()  # of the three below, and while they are sent: frames keep their order
        self._output: list[Frame] = []
        self._output_bytes = 0
        self._flushing = False
        self._lock = threading.Lock()  # of the two below
        self._turn = 0  # the number of the turn that runs or is about to; 0 between turns
        self._closing = False
        self.session = Session(program, start, limits, self)

    def turn(self, number: int, take: Callable[[], Turn]) -> Work:
        """Return a function that runs the turn of this number and reports how it ended."""
        self._turn = number
        self.session.announce()
        self._place.begin()

        def work() -> None:
            self._place.take()
            try:
                ended = self._ended(number, take)
            finally:
                self._place.give()
            with self._lock:
                self._turn = 0
                closing = self._closing
            self._send(ended)
            if closing:
                self._free()

        return work

    def _ended(self, number: int, take: Callable[[], Turn]) -> Frame:
        try:
            turn = take()
        except MemoryError as error:
            return write_failure(self._number, number, error)
        change = self.session.take_checkpoint()
        now, sent, seen = self.session.checkpoint, self._sent, list(self.session.seen)
        self._reported += [0] * (len(seen) - len(self._reported))
        sent.seen = [blocks & ~sent_before for blocks, sent_before in zip(seen, self._reported, strict=True)]
        self._sent, self._reported = SentState(now.files, now.layout), seen
        return write_end(self._number, number, turn, now, change, sent)

    def ask(self, call: HostCall, noted: Noted | None = None) -> Future[Reply]:
        """Send a guest's request to the server, and before it what its turn was told by chance since the last."""
        self._last_call += 1
        future: Future[Reply] = Future()
        number = self._last_call
        self._calls[number] = future
        future.add_done_callback(lambda _: self._calls.pop(number, None))
        asked = Frame(Kind.CALL, self._number, number, data=call.frame, turn=self._turn)
        untold = noted.untold() if noted is not None else None
        if untold is None:
            self._send(asked)
        else:
            at, entries = untold
            self._send(Frame(Kind.INPUTS, self._number, at, data=entries, turn=self._turn), asked)
        return future

    def answered(self, frame: Frame) -> None:
        """Take the server's reply to a request of the running turn. A reply to an earlier turn's request is ignored."""
        future = self._calls.get(frame.number) if frame.turn == self._turn else None
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(Reply(frame.data))

    def interrupt(self, number: int) -> None:
        """Stop the turn of this number if it runs or is about to. Any other turn goes on."""
        with self._lock:
            if self._turn == number:
                self.session.interrupt()
                self._place.stop()

    def printed(self, stream: int, data: bytes) -> None:
        """Keep what the guest printed, to be sent to the server soon."""
        with self._sending:
            self._output.append(Frame(Kind.OUTPUT, self._number, stream, data=data, turn=self._turn))
            self._output_bytes += len(data)
            if self._output_bytes > MAX_OUTPUT:
                self._send_now()

    def _send(self, *frames: Frame) -> None:
        """Send the output kept so far, and then these frames."""
        with self._sending:
            self._send_now(*frames)

    def _send_now(self, *frames: Frame) -> None:
        output, self._output, self._output_bytes = self._output, [], 0
        if output or frames:
            self._channel.send(*output, *frames)

    def _flush(self) -> None:
        self._flushing = False
        self._send()

    def until(self, done: Callable[[], bool], seconds: float | None) -> float:
        """Wait until `done()`, or so many seconds, and read frames meanwhile. The turn's place is free meanwhile."""
        self._send()
        self._place.give()
        self._threads.until(done, seconds)
        return self._place.take()

    def wake(self) -> None:
        """Have the waiting threads check again whether they are done."""
        self._threads.wake()

    def tick(self, turn: Pausable) -> None:
        """Have the output kept so far sent, make sure that another thread reads, and let others in line run."""
        if self._output and not self._flushing:  # by another thread: the server may be slow to take it
            self._flushing = True
            if not self._threads.call(self._flush):
                self._flushing = False
        self._threads.tick()
        self._place.pass_on(turn)

    def close(self) -> None:
        """End the session. A running turn is stopped first, and the thread that runs it then closes the session."""
        self.session.interrupt()
        self._place.stop()
        with self._lock:
            self._closing = True
            if self._turn:
                return
        self._free()

    def _free(self) -> None:
        corpora = self.session.checkpoint.layout.corpora
        self.session.close()
        for corpus in corpora:
            _close(corpus)


class Worker:
    """Serves frames until the server goes away."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._threads = LeaderFollowers(channel, self._take)
        self._served: dict[int, _Served] = {}
        self._program: Program
        self._places: Places
        self._images: dict[str, Image] = {}

    def serve(self) -> None:
        """Load everything on the only thread there is, and then serve. The process ends when the server is gone."""
        frame = self._channel.receive()
        if frame is not None:
            self._load(frame)
            self._threads.start()
            threading.Event().wait()

    def _take(self, frame: Frame) -> Work | None:
        served = self._served.get(frame.session)
        match frame.kind:
            case Kind.PING:
                self._channel.send(Frame(Kind.READY))
            case Kind.OPEN:
                self._open(frame)
            case Kind.ATTACH if served:
                session, printed, name = served.session, served.printed, frame.header["name"]
                corpus = read_corpus(frame.header["corpus"], self._channel.descriptor)
                return served.turn(frame.turn, lambda: _attached(session, name, corpus, printed))
            case Kind.EXECUTE if served:
                code, inputs = read_turn_request(frame)
                noted = Noted(inputs) if inputs is not None else None
                ask, printed, session = partial(served.ask, noted=noted), served.printed, served.session
                return served.turn(frame.turn, lambda: session.execute(code, ask, printed, noted))
            case Kind.REPLY if served:
                served.answered(frame)
            case Kind.INTERRUPT if served:
                served.interrupt(frame.turn)
            case Kind.CLOSE if served:
                del self._served[frame.session]
                served.close()
        return None

    def _load(self, frame: Frame) -> None:
        """Load the program and its images, run an image once so that nothing is left to load, and enter the jail."""
        header = frame.header
        self._places = Places(header["turns"], self._threads.tick)
        stdlib = self._channel.descriptor(header["stdlib"])
        standard = {STDLIB_PATH: Inode(2, mmap(stdlib, 0, access=ACCESS_READ))}
        self._program = Program(Path(header["compiled"]), instance.FUNCTIONS, wasi.missing)
        for name, image in header["images"].items():
            fd = self._channel.descriptor(image["descriptor"])
            number = image["packages"]
            packages = {} if number is None else mounted(self._channel.descriptor(number))
            self._images[name] = Image(name, fd, image["size"], Files(Limits(), {**standard, **packages}))
        problem = ""
        try:
            _warm_up(self._program, next(iter(self._images.values())))
            jail.self_test(jail.confine())
        except jail.JailError as error:
            problem = str(error)
        self._channel.send(Frame(Kind.READY, header={"unconfined": problem[:1000]}))

    def _open(self, frame: Frame) -> None:
        start, limits = read_session(frame, self._images, self._channel.descriptor)
        served = _Served(start, limits, self._program, self._threads, self._places, self._channel, frame.session)
        self._served[frame.session] = served


def _attached(session: Session, name: str, corpus: Corpus, printed: OutputListener) -> Turn:
    """Attach a corpus. Its descriptor is closed with the session, or at once where attaching fails."""
    try:
        return session.attach(name, corpus, printed)
    finally:
        if corpus not in session.checkpoint.layout.corpora:
            _close(corpus)


def _close(corpus: Corpus) -> None:
    if isinstance(corpus.source, int):
        os.close(corpus.source)


def _warm_up(program: Program, image: Image) -> None:
    """Use everything that a turn may need once, errors included, while modules can still be loaded."""
    here, there = socket.socketpair()
    first, second = socket.socketpair()
    channel = Channel(here, first)
    limits = Limits()
    threads = LeaderFollowers(channel, lambda _: None)
    served = _Served(Checkpoint.of(image), limits, program, threads, Places(1, threads.tick), channel, 0)
    session = served.session
    problems: list[Exception] = []

    def turns() -> None:
        with (
            in_memory(["text"], CorpusKind.TEXT) as text,
            in_memory(["one", "2" * BLOCK], CorpusKind.DOCUMENTS) as documents,
        ):
            warm_up(text, documents)

    def warm_up(text: Corpus, documents: Corpus) -> None:
        session.attach("text", text)
        session.attach("documents", documents)
        for code in _WARM_UP_TURNS:
            session.execute(code, served.ask, served.printed, Noted(Inputs.new()))
        session.execute(_ENDLESS, served.ask, lambda *_: session.interrupt())
        write_layout(session.checkpoint.layout)
        read_files(*write_files(session.checkpoint.files), image.files)
        pagetable.can_watch()
        missing.can_serve()
        served.turn(1, lambda: session.execute("x = 1"))()
        session.execute("x = 2")
        session.checkpoint.fork().close()

    def run() -> None:
        try:
            turns()
        except Exception as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    program.clock.close()  # only a process with a single thread can enter the jail
    session.close()
    for closing in (here, there, first, second):
        closing.close()
    if problems:
        raise problems[0]


_WARM_UP_TURNS = (
    "open('/tmp/x', 'w').write('x')",
    "1 / 0",
    "import _documents\n_documents.located(documents[1][1:]), [len(d) for d in documents], documents.names",
    "import os, time; time.sleep(0.001); os.urandom(1)",
    "import os; os._exit(1)",
)
_ENDLESS = "print(1, flush=True)\nwhile True: pass"


def main() -> None:
    """Serve on two sockets. The arguments are their descriptors."""
    jail.raise_addresses()
    frames, descriptors = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
    threading.stack_size(THREAD_STACK_BYTES)
    memory.give_back_freed()
    Worker(Channel(frames, descriptors)).serve()
