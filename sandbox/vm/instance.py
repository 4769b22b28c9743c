"""One guest: its memory and files, the turns it runs, and the host's side of the door."""

from __future__ import annotations

import ctypes
import logging
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

from sandbox.corpora.corpus import BLOCK, Corpus, Kind
from sandbox.door import DoorRefusal, HostCall, Json, Reply, granted, parse, refused
from sandbox.limits import Limits
from sandbox.memory import memory, pagetable
from sandbox.memory.memory import Runs
from sandbox.turn import Output, OutputListener, Status, Stop, Turn, TurnError, Variable
from sandbox.vm import clocks, wasi
from sandbox.vm.engine import GuestStopped, HostFunction, Program, current
from sandbox.vm.files import Files
from sandbox.vm.mappings import ADDRESSES, Mappings
from sandbox.vm.waiting import NO_REPLIES, Pending, Requests, ThreadWaiter, Waiting

log = logging.getLogger(__name__)

MAX_VARIABLES = 200
MAX_TRACEBACK = 16_000
MAX_REPORT_BYTES = 1 << 20

WATCHED_FROM = 1024
"""Pages of its own from which on a guest's writes are watched; up to there copying all of them costs less."""

Handler = Callable[[HostCall], Pending]
"""Starts answering a request; the future's exception, a `DoorRefusal`, is raised inside the guest."""


@dataclass(frozen=True, slots=True)
class Image:
    """A golden image: the memory of a started guest in `fd`, `size` bytes, and the files it had.

    `key` changes with anything the image is made from.
    """

    name: str
    fd: int
    size: int
    files: Files
    key: str = ""


def turn_frame(code: str, number: int, *, fresh: bool) -> bytes:
    """Write what `_runner.enter` in the guest takes for a turn; `fresh` has it draw new entropy first."""
    return f"turn {number} {'fresh' if fresh else 'going'}\n".encode() + code.encode("utf-8", "surrogatepass")


class Instance:
    """A running guest.

    Not thread-safe: one thread at a time; only `interrupt` may be called from another. After a turn that was stopped,
    the instance must be closed and another restored in its place.
    """

    def __init__(self, program: Program, image: Image | None, limits: Limits, files: Files) -> None:
        self.limits = limits
        self._files, self._files_asked_for = files, False
        self.clock_offset = clocks.new_offset()
        self.image = image
        self.mappings = Mappings(self)
        self._program = program
        self._machine = program.instantiate(self._memory_limit())
        self.base = self._machine.base
        self._watched = False
        self._own: Runs | None = None  # its own pages, where no turn has changed which these are
        self._known_size = 0  # memory never shrinks: what is within this needs no asking
        if image is not None:
            self._machine.grow(image.size)
            memory.lay_over(self.base, image.size, image.fd)
        self._output = Output(0, None)
        self._handler: Handler | None = None
        self._stop: TurnError | None = None
        self._interrupted = threading.Event()
        self.waiting: Waiting = ThreadWaiter()
        self._requests = Requests(self.waiting, limits.frame_bytes)
        self._running = False
        self._answering = False
        self._report: HostCall | None = None
        self._variables: tuple[Variable, ...] = ()
        self._local: dict[str, Callable[[HostCall], Json | Reply]] = {
            "sandbox.document": self.mappings.give,
            "sandbox.locate": self.mappings.locate,
        }
        self._reset_meters()

    def _reset_meters(self) -> None:
        self._started = time.monotonic()
        self._waited = 0.0
        self._door_calls = 0
        self._door_bytes = 0

    def _memory_limit(self) -> int:
        own = max(self.limits.memory_bytes, self.image.size if self.image else 0)
        return min(own + self.mappings.reserved + 65536, ADDRESSES)

    # ---- turns ---------------------------------------------------------------------------------------------------

    def run(self, frame: bytes, handler: Handler | None = None, listener: OutputListener | None = None) -> Turn:
        """Have the guest do what a frame says, as a turn, and say how it ended. Blocks until it has."""
        self._reset_meters()
        self._output = Output(self.limits.output_bytes, listener)
        self._handler, self._report, self._stop = handler, None, None
        self._requests = requests = Requests(self.waiting, self.limits.frame_bytes)
        if self._interrupted.is_set():
            requests.stop()
        outer, current.guest, self._running = current.guest, self, True
        code, faults = -1, pagetable.faults()
        try:
            with self._program.clock:
                code = self._call_turn(frame)
        except GuestStopped as stopped:
            if self._stop is None:
                kind = Stop.STACK if stopped.stack_overflow else Stop.TRAP
                message = "the code overflowed its stack" if stopped.stack_overflow else str(stopped)
                self._stop = TurnError(kind, message)
        finally:
            self._running = False
            current.guest, self._handler = outer, None
            if len(requests):
                requests.stop()
            if pagetable.faults() != faults:
                self._own = None
                self.mappings.look()
        return self._result(code)

    def _call_turn(self, frame: bytes) -> int:
        address = self._allocate(len(frame))
        self.write(address, frame)
        return self._machine.call("turn", address, len(frame))

    def _result(self, code: int) -> Turn:
        stdout, stderr = self._output.finish()
        error: TurnError | None
        variables: tuple[Variable, ...]
        if self._stop:
            error, variables = self._stop, ()
        elif self._report is None and code == 0:  # nothing has changed since it last said
            error, variables = None, self._variables
        else:
            error, variables = _read_report(self._report)
            self._variables = variables
        if error and error.type == "MemoryError":
            error = replace(error, message=f"{error.message} (the limit is {self.limits.memory_bytes} bytes)".strip())
        stopped = error is not None and isinstance(error.type, Stop)
        status = Status.ROLLED_BACK if stopped else Status.ERROR if error else Status.OK
        return Turn(
            status, stdout, stderr, self._output.total, self._output.dropped > 0, self.running_seconds,
            self._door_calls, error, variables,
        )  # fmt: skip

    @property
    def running_seconds(self) -> float:
        """How long the turn has run, waiting in the door not counted."""
        return time.monotonic() - self._started - self._waited

    def interrupt(self) -> None:
        """Stop the running turn at once, from any thread, whatever it is doing; later turns stop as well."""
        self._interrupted.set()
        self._requests.stop()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called: this instance runs nothing more."""
        return self._interrupted.is_set()

    def tick(self) -> str | None:
        """Say why the guest must stop now; the engine asks every now and then while it runs."""
        self.waiting.tick()
        return self.stop_reason()

    def stop_reason(self) -> str | None:
        """Say why the guest must stop now."""
        if self._stop is None and self._running:
            if self._interrupted.is_set():
                self._stop = TurnError(Stop.INTERRUPTED, "the turn was interrupted")
            elif self.running_seconds > self.limits.turn_seconds:
                self._stop = TurnError(Stop.TURN_TIME, f"the turn ran longer than {self.limits.turn_seconds:g} seconds")
        return self._stop.type if self._stop else None

    def sleep(self, seconds: float) -> bool:
        """Wait on the guest's behalf, which counts as running."""
        longest = max(0.0, self.limits.turn_seconds - self.running_seconds + 0.02)
        self.waiting.until(self._interrupted.is_set, min(seconds, longest))
        return self.stop_reason() is None

    def exited(self, code: int) -> None:
        """Note that the guest ended its process."""
        self._stop = TurnError(Stop.EXIT, f"the code ended its process with status {code}; use answer to finish")

    def printed(self, stream: int, data: bytes) -> None:
        """Take output."""
        self._output.take(stream, data)

    # ---- memory --------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of linear memory now."""
        self._known_size = self._machine.size
        return self._known_size

    def grow(self, size: int) -> None:
        """Grow linear memory to at least `size` bytes, within its limit."""
        self._machine.limit_memory(max(self._memory_limit(), size))
        self._machine.grow(size)

    def watch(self) -> None:
        """Watch writes from now on, where that is possible: what is the guest's own now is known to the caller."""
        if pagetable.can_watch():
            pagetable.watch(self.base, ADDRESSES)
            pagetable.written(self.base, self.size)
            self._watched = True

    def changed_pages(self) -> tuple[Runs, bool]:
        """Return the pages that may have changed since this was last asked, and whether all others are the image's."""
        if self._watched:
            return pagetable.written(self.base, self.size), False
        if self._own is None:
            assert self.image is not None  # noqa: S101
            self._own = pagetable.own_pages(self.base, self.size, self.image.fd)
            if sum(size for _, size in self._own) > WATCHED_FROM * memory.PAGE:
                self.watch()
        return self._own, True

    @property
    def files(self) -> Files:
        """The guest's files; whoever asks for them may change them."""
        self._files_asked_for = True
        return self._files

    def changed_files(self) -> Files | None:
        """Return a copy of the files where they may have changed since this was last asked."""
        asked, self._files_asked_for = self._files_asked_for, False
        return self._files.copy() if asked else None

    def view(self) -> memoryview:
        """Return guest memory as it is sized now; it must not be used after `close`."""
        return memoryview((ctypes.c_char * self.size).from_address(self.base)).cast("B")

    def _has(self, end: int) -> bool:
        return end <= self._known_size or end <= self.size

    def _check(self, end: int) -> None:
        if not self._has(end):
            raise wasi.BadAddress(end)

    def read(self, address: int, size: int) -> bytes:
        """Copy out of guest memory; raises `wasi.BadAddress` outside it."""
        self._check(address + size)
        return ctypes.string_at(self.base + address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copy into guest memory; raises `wasi.BadAddress` outside it."""
        self._check(address + len(data))
        ctypes.memmove(self.base + address, data, len(data))

    def _allocate_or_none(self, size: int) -> int | None:
        address = self._machine.call("host_alloc", size)
        return address if address and self._has(address + size) else None

    def _allocate(self, size: int) -> int:
        address = self._allocate_or_none(size)
        if address is None:
            raise GuestStopped(f"the guest could not allocate {size} bytes")
        return address

    # ---- the door ------------------------------------------------------------------------------------------------

    def answer_door(self, address: int, size: int, out_address: int, out_size: int) -> int | None:
        """Serve one request of the guest's; returns 0, -2 (as unsigned) for bad addresses, None to stop the guest."""
        if self._answering:  # by the guest's allocator, which the host calls to place a reply
            self._stop = self._stop or TurnError(Stop.TRAP, "the guest called the host within a call of the host's")
            return None
        self._answering = True
        try:
            reply = self._answer(address, size)
            if self.stop_reason():
                return None
            at = self._allocate_or_none(len(reply))
            if at is None:
                reply = refused("MemoryError", f"the reply of {len(reply)} bytes does not fit into the memory left")
                at = self._allocate(len(reply))
            self.write(at, reply)
            self.write(out_address, struct.pack("<I", at))
            self.write(out_size, struct.pack("<I", len(reply)))
        except wasi.BadAddress:
            return ADDRESSES - 2
        except GuestStopped as stopped:
            self._stop = self._stop or TurnError(Stop.TRAP, str(stopped))
            return None
        finally:
            self._answering = False
        return 0

    def _answer(self, address: int, size: int) -> bytes:
        limits = self.limits
        try:
            self._check_frame(size)
            call = parse(self.read(address, size))
            if call.op == "sandbox.report":  # how a turn ended must get through, whatever the turn has used
                self._report = call
                return granted(None)
            local = self._local.get(call.op)
            if local is None:
                self._meter(size)
            served = local(call) if local else self._serve(call)
            reply = served if isinstance(served, Reply) else granted(served)
        except DoorRefusal as refusal:
            return refused(refusal.type, str(refusal))
        except (wasi.BadAddress, GuestStopped):
            raise
        except Exception:
            log.exception("a host call failed")
            return refused("RuntimeError", "the host could not answer; this is a fault of the server's")
        if len(reply) > limits.frame_bytes:
            return refused("LimitExceeded", f"the reply has {len(reply)} bytes, the limit is {limits.frame_bytes}")
        return reply

    def _check_frame(self, size: int) -> None:
        if size > max(self.limits.frame_bytes, MAX_REPORT_BYTES):
            raise DoorRefusal("LimitExceeded", f"{size} bytes in one request, the limit is {self.limits.frame_bytes}")

    def _meter(self, size: int) -> None:
        self._door_calls += 1
        self._door_bytes += size
        for name, used, limit in (
            ("bytes in one request", size, self.limits.frame_bytes),
            ("bytes in requests of one turn", self._door_bytes, self.limits.door_bytes),
            ("requests in one turn", self._door_calls, self.limits.door_calls),
        ):
            if used > limit:
                raise DoorRefusal("LimitExceeded", f"{used} {name}, the limit is {limit}")

    def _serve(self, call: HostCall) -> Json | Reply:
        requests = self._requests
        if call.op == "sandbox.wait":
            seconds = call.seconds("seconds")
            if not requests:
                self.sleep(self.limits.turn_seconds if seconds is None else seconds)
                return []
            replies = self._waiting(lambda: requests.next(seconds))
            if replies != NO_REPLIES:  # to tell of what was counted when it was asked for is not counted again
                self._door_calls -= 1
            return replies
        if self._handler is None:
            raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")
        if len(requests) >= self.limits.door_waiting:
            raise DoorRefusal("LimitExceeded", f"{self.limits.door_waiting} requests under way at once is the limit")
        pending = self._handler(call)
        return requests.add(pending) if call.later else self._waiting(lambda: requests.only(pending))

    def _waiting(self, wait: Callable[[], Json | Reply]) -> Json | Reply:
        """Wait, while the turn's time rests."""
        started = time.monotonic()
        try:
            return wait()
        except CancelledError:
            self._interrupted.set()
            raise DoorRefusal("CancelledError", "the call was cancelled") from None
        finally:
            self._waited += time.monotonic() - started

    # ---- documents -----------------------------------------------------------------------------------------------

    def attach(self, name: str, corpus: Corpus) -> Turn:
        """Make `name` in the guest a real `str`, or a sequence of them, whose characters are those of a corpus.

        Raises:
            MemoryError: a text does not fit into what is left of the guest's 4 GiB.
        """
        if corpus.kind is Kind.TEXT and self.size + corpus[0].size + 3 * BLOCK > ADDRESSES:
            raise MemoryError(f"a text of {corpus[0].size} bytes does not fit into the guest's 4 GiB of addresses")
        number = self.mappings.add(corpus)
        return self.run(f"attach {name} {number} {len(corpus)} {corpus.kind.name}\n".encode())

    def reserve(self, size: int) -> int | None:
        """Return the address of memory from the guest's allocator which counts apart; None where there is none."""
        self._machine.limit_memory(min(self._memory_limit() + size, ADDRESSES))
        return self._allocate_or_none(size)

    def mappings_changed(self) -> None:
        """Note that memory is mapped otherwise than before: what is mapped over a watched range is not watched."""
        self._watched, self._own = False, None

    def close(self) -> None:
        """Free the guest's memory."""
        self._machine.close()


_DAMAGED = TurnError(Stop.DAMAGED, "the code damaged the interpreter's own modules")


def _read_report(report: HostCall | None) -> tuple[TurnError | None, tuple[Variable, ...]]:
    """Read what the guest's runner says of the turn."""
    if report is None:
        return _DAMAGED, ()
    error, variables = report.arguments.get("error"), report.arguments.get("variables") or []
    try:
        told = [str(error[key])[:MAX_TRACEBACK] for key in ("type", "message", "traceback")] if error else []
        said = TurnError(*told) if told else None
        named = tuple(Variable(str(n)[:200], str(t)[:200], int(size)) for n, t, size in variables[:MAX_VARIABLES])
    except (TypeError, KeyError, ValueError, OverflowError):
        return _DAMAGED, ()
    return said, named


def _door(guest: Instance, *arguments: int) -> int | None:
    return guest.answer_door(*arguments)


FUNCTIONS: dict[tuple[str, str], HostFunction] = {**wasi.FUNCTIONS, ("host", "call"): _door}
"""Everything a guest may import."""
