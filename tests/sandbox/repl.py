"""Sessions as the tests use them: turns run on a thread with a stack that fits the guest's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from sandbox.corpora.corpus import Corpus
from sandbox.door import HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.turn import OutputListener, Status, Turn
from sandbox.vm.engine import THREAD_STACK_BYTES
from sandbox.vm.guest_door import Handler
from sandbox.vm.image import Loaded
from sandbox.vm.safepoints import PAGE_BYTES
from sandbox.vm.session import Session


def on_thread(work: Callable[[], Turn]) -> Future[Turn]:
    """Run `work` on a new thread that is fit for guests."""
    future: Future[Turn] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    before = threading.stack_size(THREAD_STACK_BYTES)
    try:
        threading.Thread(target=run, daemon=True).start()
    finally:
        threading.stack_size(before)
    return future


@dataclass
class Repl:
    """A session and how to talk with it."""

    session: Session

    def begin(
        self, code: str, handler: Handler | None = None, listener: OutputListener | None = None
    ) -> Future[Turn]:  # fmt: skip
        """Start a turn and return at once."""
        return on_thread(lambda: self.session.execute(code, handler, listener))

    def run(self, code: str, handler: Handler | None = None, listener: OutputListener | None = None) -> Turn:
        """Run a turn to its end."""
        return self.begin(code, handler, listener).result(60)

    def show(self, code: str, handler: Handler | None = None) -> str:
        """Run a turn that must succeed and return what it printed."""
        turn = self.run(code, handler)
        assert turn.status is Status.OK, turn
        return turn.stdout.removesuffix("\n")

    def attach(self, name: str, corpus: Corpus) -> Turn:
        """Attach a corpus; it must succeed."""
        turn = on_thread(lambda: self.session.attach(name, corpus)).result(60)
        assert turn.status is Status.OK, turn
        return turn


class Repls:
    """Starts sessions and closes them in the end."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._open: list[Session] = []

    def __call__(self, image: str = "core", **limits: float) -> Repl:
        """Start a session; the time of a turn is 20 seconds and the memory 96 MiB unless told."""
        chosen = Limits(**{"turn_seconds": 20.0, "memory_bytes": 96 * MIB, **limits})  # type: ignore[arg-type]
        return self.keep(Session(self._loaded.program, self._loaded.images[image], chosen))

    def fork(self, repl: Repl) -> Repl:
        """Fork a session."""
        return self.keep(repl.session.fork())

    def keep(self, session: Session) -> Repl:
        """Close this session in the end, too."""
        self._open.append(session)
        return Repl(session)

    def close(self) -> None:
        """Close all."""
        for session in self._open:
            session.close()


def answering(answer: Callable[[HostCall], Json]) -> Handler:
    """Make a handler that answers at once with what `answer` returns or raises."""

    def handler(call: HostCall) -> Future[Json]:
        future: Future[Json] = Future()
        try:
            future.set_result(answer(call))
        except Exception as error:
            future.set_exception(error)
        return future

    return handler


def memory_of(repl: Repl) -> bytes:
    """Return the linear memory of a session between turns, without the page by which it is stopped."""
    memory = repl.session._instance.memory
    return memory.read(PAGE_BYTES, memory.size - PAGE_BYTES)
