"""One guest: its memory, files and documents, the door it asks through, and the turns it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sandbox.corpora.corpus import BLOCK, Corpus, Kind
from sandbox.door import HostCall
from sandbox.limits import Limits
from sandbox.memory import missing, pagetable
from sandbox.turn import (
    MAX_COUNT,
    MAX_NAME,
    MAX_TRACEBACK,
    MAX_VARIABLES,
    Output,
    OutputListener,
    Status,
    Stop,
    Turn,
    TurnError,
    Variable,
)  # fmt: skip
from sandbox.vm import wasi
from sandbox.vm.chance import TIME_OF_DAY, Noted, Unnoted
from sandbox.vm.engine import Direct, GuestStopped, HostFunction, Program, current
from sandbox.vm.files import Files, host_time
from sandbox.vm.guest_door import GuestDoor, Handler
from sandbox.vm.guest_memory import ADDRESSES, GuestMemory
from sandbox.vm.mappings import Mappings
from sandbox.vm.poll_page import PollPage
from sandbox.vm.turn_guard import TurnGuard
from sandbox.vm.waiting import ThreadWaiter, Waiting


@dataclass(frozen=True, slots=True)
class Image:
    """A golden image: the memory of a started guest (`size` bytes in the file `fd`), and the files it had.

    `key` changes with anything that the image is made from. `packages` has the files of its wheels, where it has any.
    """

    name: str
    fd: int
    size: int
    files: Files
    key: str = ""
    packages: Path | None = None


def new_proof() -> int:
    """Return a number that a guest returns only where it carried out what it was told to.

    The interpreter returns a byte. What a function that does nothing returns, such as 0 or 1, is no such number.
    """
    return 16 + os.urandom(1)[0] % 224


def turn_frame(code: str, number: int, proof: int, *, fresh: bool, noted: bool = False) -> bytes:
    """Write the frame that `_runner.enter` in the guest takes for a turn. With `fresh` it first draws new entropy.

    With `noted` it tells its variables in any case: another instance may not know what it told last.
    """
    head = f"turn {number} {'fresh' if fresh else 'noted' if noted else 'going'} {proof}\n"
    return head.encode() + code.encode("utf-8", "surrogatepass")


class Instance:
    """A running guest.

    Not thread-safe: only `interrupt`, `tick`, `pause` and `resume` may be called from another thread. After a turn that
    was stopped, the instance must be closed and another restored in its place.
    """

    def __init__(
        self, program: Program, image: Image | None, limits: Limits, files: Files, waiting: Waiting | None = None
    ) -> None:  # fmt: skip
        self.limits = limits
        self._files, self._files_asked_for = files, False
        self._program = program
        size = image.size if image is not None else 0
        limit = max(limits.memory_bytes, size)
        self._machine = program.instantiate(min(limit + 65536, ADDRESSES))
        self.memory = GuestMemory(self._machine, limit, image.fd if image is not None else -1, size)
        self.mappings = Mappings(self.memory)
        self._page = PollPage(self.memory.base)
        self._guard = guard = TurnGuard(limits.turn_seconds, self._page)
        self.unnoted = Unnoted(lambda: guard.running_seconds)
        self.chance: Unnoted | Noted = self.unnoted
        """Where the guest's clocks and random bytes come from."""
        self._waiting = waiting if waiting is not None else ThreadWaiter()
        local = {"sandbox.document": self.mappings.give, "sandbox.locate": self.mappings.locate}
        self.door = GuestDoor(self.memory, self._guard, limits, self._waiting, local)
        self._output = Output(0, None)
        self._variables: tuple[Variable, ...] = ()

    # ---- turns ---------------------------------------------------------------------------------------------------

    def run(
        self,
        frame: bytes,
        handler: Handler | None = None,
        listener: OutputListener | None = None,
        proof: int = 0,
        noted: Noted | None = None,
    ) -> Turn:
        """Have the guest carry out a frame as a turn, and return how the turn ended. Blocks until then.

        A guest that neither reports an error nor returns `proof` has not done it: the turn ends as damaged. With
        `noted`, that says what the guest is told by chance.
        """
        guard, door = self._guard, self.door
        guard.begin()
        door.begin(handler, noted)
        self.mappings.begin_turn()
        self._told_by(noted)
        self._output = Output(self.limits.output_bytes, listener)
        outer, current.guest = current.guest, self
        code, faults = -1, pagetable.faults()
        try:
            with self._program.clock.watching(self):
                if guard.reason() is None:  # a turn that was stopped before it began runs nothing
                    code = self._call_turn(frame)
        except GuestStopped as stopped:
            overflow = stopped.stack_overflow
            message = "the code overflowed its stack" if overflow else str(stopped)
            guard.stop(TurnError(Stop.STACK if overflow else Stop.TRAP, message))
        finally:
            guard.end()
            current.guest = outer
            door.end()
            self._told_by(None)
            if pagetable.faults() != faults:
                self.memory.note_faults()
                self.mappings.look()
        return self._result(code == proof)

    def _told_by(self, noted: Noted | None) -> None:
        self.chance = self.unnoted if noted is None else noted
        self._files.now = host_time if noted is None else partial(noted.clock, TIME_OF_DAY)
        if noted is not None:
            noted.over(self.unnoted.clock)

    def _call_turn(self, frame: bytes) -> int:
        address = self.memory.allocate(len(frame))
        self.memory.write(address, frame)
        return self._machine.call("turn", address, len(frame))

    def _result(self, proved: bool) -> Turn:
        stdout, stderr = self._output.finish()
        report, error = self.door.report, self._guard.error
        variables: tuple[Variable, ...] = ()
        if error is None:
            if report is not None:
                error, self._variables = _read_report(report)
            error = error or (None if proved else _DAMAGED)
            variables = self._variables  # without a report they are as in the last one
        if error and error.type == "MemoryError":
            error = replace(error, message=f"{error.message} (the limit is {self.limits.memory_bytes} bytes)".strip())
        stopped = error is not None and isinstance(error.type, Stop)
        status = Status.ROLLED_BACK if stopped else Status.ERROR if error else Status.OK
        return Turn(
            status, stdout, stderr, self._output.total, self._output.dropped > 0, self.running_seconds,
            self.door.calls, error, variables,
        )  # fmt: skip

    @property
    def running_seconds(self) -> float:
        """For how many seconds the turn has run. Waiting in the door is not counted."""
        return self._guard.running_seconds

    def interrupt(self) -> None:
        """Stop the running turn at once, whatever it is doing, and every later one."""
        self._guard.interrupt()
        self.door.stop()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called, so that this instance runs nothing more."""
        return self._guard.interrupted

    # ---- for other threads while a turn runs ---------------------------------------------------------------------

    def tick(self) -> None:
        """Stop the turn if its time is up, and do what else must be done at intervals while the guest runs."""
        if not self._guard.waits:
            self._guard.tick()
            self._waiting.tick(self)

    @property
    def pausable(self) -> bool:
        """Whether a turn can be kept waiting here."""
        return missing.can_serve()

    def pause(self) -> bool:
        """Have the running turn wait at its next loop, which is not running time. Return False where it cannot."""
        return self._guard.pause()

    def resume(self) -> None:
        """Let a turn that waits go on."""
        self._guard.resume()

    # ---- for the guest's system ----------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> bool:
        """Wait on the guest's behalf, and return whether it may go on. This wait counts as running."""
        return self.door.sleep(seconds)

    def exited(self, code: int) -> None:
        """Note that the guest ended its process."""
        message = f"the code ended its process with status {code}; use answer to finish"
        self._guard.stop(TurnError(Stop.EXIT, message))

    def printed(self, stream: int, data: bytes) -> None:
        """Take output."""
        self._output.take(stream, data)

    @property
    def files(self) -> Files:
        """The guest's files. The caller may change them."""
        self._files_asked_for = True
        return self._files

    def changed_files(self) -> Files | None:
        """Return a copy of the files if they may have changed since the last call, else None."""
        asked, self._files_asked_for = self._files_asked_for, False
        return self._files.copy() if asked else None

    # ---- documents -----------------------------------------------------------------------------------------------

    def attach(self, name: str, corpus: Corpus, listener: OutputListener | None = None) -> Turn:
        """Make `name` in the guest a real `str`, or a sequence of them, whose characters are those of a corpus.

        Raises:
            MemoryError: a text does not fit into what is left of the guest's 4 GiB.
        """
        if corpus.kind is Kind.TEXT and self.memory.size + corpus[0].size + 3 * BLOCK > ADDRESSES:
            raise MemoryError(f"a text of {corpus[0].size} bytes does not fit into the guest's 4 GiB of addresses")
        number, proof = self.mappings.add(corpus), new_proof()
        frame = f"attach {name} {number} {len(corpus)} {corpus.kind.name} {proof}\n"
        return self.run(frame.encode(), None, listener, proof)

    def close(self) -> None:
        """Free the guest's memory."""
        self._page.close()
        self._machine.close()


_DAMAGED = TurnError(Stop.DAMAGED, "the code damaged the interpreter's own modules")


def _read_report(report: HostCall) -> tuple[TurnError | None, tuple[Variable, ...]]:
    """Read the report of the guest's runner: the error that ended the turn, if any, and the variables."""
    error, variables = report.arguments.get("error"), report.arguments.get("variables")
    try:
        raised = None
        if error is not None:
            raised = TurnError(*(str(error[key])[:MAX_TRACEBACK] for key in ("type", "message", "traceback")))
        named = tuple(_variable(*variable) for variable in variables[:MAX_VARIABLES]) if variables is not None else ()
    except (TypeError, KeyError, ValueError, OverflowError):
        return _DAMAGED, ()
    return raised, named


def _variable(name: object, kind: object, length: object) -> Variable:
    told = type(length) is int and 0 <= length <= MAX_COUNT
    return Variable(str(name)[:MAX_NAME], str(kind)[:MAX_NAME], length if told else -1)  # type: ignore[arg-type]


def _door(guest: Instance, *arguments: int) -> int | None:
    return guest.door.answer(*arguments)


FUNCTIONS: dict[tuple[str, str], HostFunction | Direct] = {**wasi.FUNCTIONS, ("host", "call"): _door}
"""Everything a guest may import."""
