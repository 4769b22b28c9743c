"""A session: a REPL whose state goes from turn to turn, and back to its last checkpoint when a turn is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sandbox.corpora.corpus import Corpus
from sandbox.limits import Limits
from sandbox.memory.pages import Change
from sandbox.turn import OutputListener, Status, Turn
from sandbox.vm.chance import Noted
from sandbox.vm.checkpoint import Checkpoint
from sandbox.vm.engine import Program
from sandbox.vm.guest_door import Handler
from sandbox.vm.instance import Image, Instance, new_proof, turn_frame
from sandbox.vm.waiting import Waiting


class Session:
    """Runs turns one at a time, starting from an image or a checkpoint. Only `interrupt` is thread-safe.

    The session owns its checkpoint; the files of attached corpora belong to the caller and must stay open as long as
    the session.
    """

    def __init__(
        self, program: Program, start: Image | Checkpoint, limits: Limits, waiting: Waiting | None = None
    ) -> None:  # fmt: skip
        self._program = program
        self._limits = limits
        self._waiting = waiting
        self._fresh = True  # entropy must be renewed before the next turn
        self._running = False
        self._announced = False
        self._stop = False  # whether the announced turn is to be stopped
        self._closed = False
        self._lock = threading.Lock()  # of the four above
        self._checkpoint = start if isinstance(start, Checkpoint) else Checkpoint.of(start)
        self._change = Change()
        self._ahead = False  # whether a turn has ended since the checkpoint was taken
        self._instance = self._restored()
        self._freeing: threading.Thread | None = None
        self.turns = 0
        self.seen = [0] * len(self._checkpoint.layout.corpora)
        """Of each corpus, a bit for each block that code has looked at, in turns that were undone as well."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The state after the last turn that was not stopped."""
        self.take_checkpoint()
        return self._checkpoint

    def take_checkpoint(self) -> Change:
        """Bring the checkpoint up to date, and return what the last turn changed. Otherwise the next turn does it."""
        if self._ahead:
            self._change = self._checkpoint.capture(self._instance)
            self._ahead = False
        return self._change

    def execute(
        self,
        code: str,
        handler: Handler | None = None,
        listener: OutputListener | None = None,
        noted: Noted | None = None,
    ) -> Turn:
        """Run Python source as one turn. Whatever happens in it, the session can run another turn afterwards.

        With `noted`, what the turn is told by chance is noted there, or as it was noted.
        """
        number, fresh, proof = self.turns + 1, self._fresh, new_proof()
        if noted is not None:
            (number, fresh), proof = noted.begin(number, fresh), noted.proof
        self.turns = number
        frame = turn_frame(code, number, proof, fresh=fresh, noted=noted is not None)
        turn = self._take_turn(lambda instance: instance.run(frame, handler, listener, proof, noted))
        self._fresh = turn.status is Status.ROLLED_BACK
        return turn

    def attach(self, name: str, corpus: Corpus, listener: OutputListener | None = None) -> Turn:
        """Make `name` in the session a `str`, or a sequence of them, with the characters of a corpus.

        Raises:
            MemoryError: a text does not fit into the guest's address space.
        """
        return self._take_turn(lambda instance: instance.attach(name, corpus, listener))

    def _restored(self) -> Instance:
        return self._checkpoint.restore(self._program, self._limits, self._waiting)

    def fork(self) -> Session:
        """Return a new session with a copy of this one's state."""
        return Session(self._program, self.checkpoint.fork(), self._limits)

    def _take_turn(self, run: Callable[[Instance], Turn]) -> Turn:
        with self._lock:
            if self._closed:
                raise RuntimeError("the session is closed")
            self._running = True
            if self._stop:
                self._instance.interrupt()
        undone = True
        try:
            self.take_checkpoint()
            self._change = Change()
            turn = run(self._instance)
            undone = turn.status is Status.ROLLED_BACK
            self._ahead = not undone
        finally:
            with self._lock:
                self._running = self._announced = self._stop = False
            self._note_seen()
            if undone or self._instance.interrupted:  # an interrupt may come as the turn ends
                self.take_checkpoint()
                stopped = self._instance
                try:
                    self._instance = self._restored()
                finally:
                    self._free(stopped)
        return turn

    def _free(self, stopped: Instance) -> None:
        """Free an instance on a thread of its own: where it used much memory, that takes longer than all else."""
        self._wait_until_freed()
        self._freeing = threading.Thread(target=stopped.close, name="freeing")
        self._freeing.start()

    def _wait_until_freed(self) -> None:
        if self._freeing is not None:
            self._freeing.join()
            self._freeing = None

    def _note_seen(self) -> None:
        for number, seen in enumerate(self._instance.mappings.seen):
            if number == len(self.seen):
                self.seen.append(0)
            self.seen[number] |= seen

    def announce(self) -> None:
        """Note that a turn is about to begin. From now on an interrupt stops it."""
        with self._lock:
            self._announced = True

    def interrupt(self) -> None:
        """Stop the turn that runs or was announced. Does nothing between turns. May be called from any thread."""
        with self._lock:
            if self._running:
                self._instance.interrupt()
            else:
                self._stop = self._announced

    def close(self) -> None:
        """Free the session's memory. It runs nothing afterwards.

        Raises:
            RuntimeError: a turn is running, and must be interrupted first.
        """
        with self._lock:
            if self._running:
                raise RuntimeError("a turn is running")
            closing, self._closed = not self._closed, True
        if closing:
            self._wait_until_freed()
            self._instance.close()
            self._checkpoint.close()
