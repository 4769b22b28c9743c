"""The host's side of the door. A guest's requests are checked, metered and served; replies go into its memory."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError

from sandbox.door import (
    INTEGER,
    ITEMS,
    SECONDS,
    Arguments,
    DoorRefusal,
    HostCall,
    Json,
    Reply,
    check_reply,
    granted,
    optional,
    parse,
    refused,
)
from sandbox.limits import Limits
from sandbox.turn import Stop, TurnError
from sandbox.vm.chance import Noted
from sandbox.vm.engine import GuestStopped
from sandbox.vm.guest_memory import ADDRESSES, BadAddress, GuestMemory
from sandbox.vm.turn_guard import TurnGuard
from sandbox.vm.waiting import NO_REPLIES, Pending, Requests, Waiting

log = logging.getLogger(__name__)

MAX_REPORT_BYTES = 1 << 20

Handler = Callable[[HostCall], Pending]
"""Starts answering a request; the future's exception, a `DoorRefusal`, is raised inside the guest."""

OWN: Mapping[str, Arguments] = {
    "sandbox.wait": {"seconds": optional(SECONDS)},
    "sandbox.document": {
        "corpus": INTEGER, "document": INTEGER, "count": INTEGER, "templates": optional(ITEMS), "box": INTEGER,
    },
    "sandbox.locate": {"at": INTEGER, "templates": optional(ITEMS)},
}  # fmt: skip
"""The requests that are answered here, beside the guest, and their arguments."""

Local = Mapping[str, Callable[[HostCall], Json | Reply]]
"""Requests that are answered at once, by what is beside the guest, and are not metered."""


class GuestDoor:
    """Serves the requests of one guest's turns. Only `stop` may be called from another thread than the turn's."""

    def __init__(self, memory: GuestMemory, guard: TurnGuard, limits: Limits, waiting: Waiting, local: Local) -> None:
        self._memory, self._guard, self._limits, self._waiting, self._local = memory, guard, limits, waiting, local
        self._handler: Handler | None = None
        self._noted: Noted | None = None
        self._requests = Requests(waiting, limits.frame_bytes)
        self._answering = False
        self.calls = 0
        """Requests of the turn."""
        self._bytes = 0
        self.report: HostCall | None = None
        """What the guest's runner said of the turn's end."""

    def begin(self, handler: Handler | None, noted: Noted | None = None) -> None:
        """Begin a turn. `handler` answers its requests; `noted` says which replies come first, where it does."""
        self._handler, self._noted, self.report = handler, noted, None
        self.calls = self._bytes = 0
        self._requests = Requests(self._waiting, self._limits.frame_bytes)
        if self._guard.interrupted:
            self._requests.stop()

    def end(self) -> None:
        """End the turn. Requests still under way are cancelled."""
        self._handler = self._noted = None
        if len(self._requests):
            self._requests.stop()

    def stop(self) -> None:
        """Cancel the requests under way and all later ones."""
        self._requests.stop()

    def answer(self, address: int, size: int, out_address: int, out_size: int) -> int | None:
        """Serve one request. Return 0, or -2 (as unsigned) for bad addresses, or None to stop the guest."""
        guard, memory = self._guard, self._memory
        if self._answering:  # called by the guest's allocator, which the host called to place a reply
            guard.stop(TurnError(Stop.TRAP, "the guest called the host within a call of the host's"))
            return None
        self._answering = True
        try:
            reply = self._reply(address, size)
            if guard.reason() is not None:
                return None
            at = memory.allocate_or_none(len(reply))
            if at is None:
                reply = refused("MemoryError", f"the reply of {len(reply)} bytes does not fit into the memory left")
                at = memory.allocate(len(reply))
            memory.write(at, reply)
            memory.write(out_address, struct.pack("<I", at))
            memory.write(out_size, struct.pack("<I", len(reply)))
        except BadAddress:
            return ADDRESSES - 2
        except GuestStopped as stopped:
            guard.stop(TurnError(Stop.TRAP, str(stopped)))
            return None
        finally:
            self._answering = False
        return 0

    def _reply(self, address: int, size: int) -> bytes:
        limits = self._limits
        try:
            self._check_frame(size)
            call = parse(self._memory.read(address, size), limits.frame_nodes, keep=True)
            if call.op == "sandbox.report":  # the report of a turn's end must get through, whatever the turn has used
                self.report = call
                return granted(None)
            if call.op in OWN:
                call.check(OWN[call.op])
            local = self._local.get(call.op)
            if local is None:
                self._meter(size)
            served = local(call) if local is not None else self._serve(call)
            reply = served if isinstance(served, Reply) else granted(served)
            check_reply(len(reply), limits.frame_bytes)
            if local is None:
                self._count(len(reply))
        except DoorRefusal as refusal:
            return refusal.reply()
        except (BadAddress, GuestStopped):
            raise
        except Exception:
            log.exception("a host call failed")
            return refused("RuntimeError", "the host could not answer; this is a fault of the server's")
        return reply

    def _check_frame(self, size: int) -> None:
        if size > max(self._limits.frame_bytes, MAX_REPORT_BYTES):
            raise DoorRefusal("LimitExceeded", f"{size} bytes in one request, the limit is {self._limits.frame_bytes}")

    def _meter(self, size: int) -> None:
        self.calls += 1
        limits = self._limits
        if size > limits.frame_bytes:
            raise DoorRefusal("LimitExceeded", f"{size} bytes in one request, the limit is {limits.frame_bytes}")
        if self.calls > limits.door_calls:
            raise DoorRefusal("LimitExceeded", f"{self.calls} requests in one turn, the limit is {limits.door_calls}")
        self._count(size)

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._limits.door_bytes:
            raise DoorRefusal(
                "LimitExceeded",
                f"{self._bytes} bytes in requests and replies of one turn, the limit is {self._limits.door_bytes}",
            )

    def _serve(self, call: HostCall) -> Json | Reply:
        requests = self._requests
        if call.op == "sandbox.wait":
            seconds = call.seconds("seconds")
            if len(requests) == 0:
                self.sleep(self._limits.turn_seconds if seconds is None else seconds)
                return []
            replies = self._wait(lambda: requests.next(seconds, self._noted))
            if replies != NO_REPLIES:  # those replies were counted when they were asked for
                self.calls -= 1
            return replies
        if self._handler is None:
            raise DoorRefusal("RuntimeError", f"nothing answers {call.op} here")
        if len(requests) >= self._limits.door_waiting:
            raise DoorRefusal("LimitExceeded", f"{self._limits.door_waiting} requests under way at once is the limit")
        pending = self._handler(call)
        return requests.add(pending) if call.later else self._wait(lambda: requests.only(pending))

    def _wait(self, wait: Callable[[], Json | Reply]) -> Json | Reply:
        """Wait. The turn's time does not run meanwhile."""
        with self._guard.waiting():
            try:
                return wait()
            except CancelledError:
                self._guard.interrupt()
                raise DoorRefusal("CancelledError", "the call was cancelled") from None

    def sleep(self, seconds: float) -> bool:
        """Wait on the guest's behalf, and return whether the turn may go on.

        This wait counts as running. A wait in line after it does not. A turn that runs again and is still told what was
        noted of it does not wait: it had its sleep.
        """
        guard = self._guard
        if self._noted is not None and self._noted.telling:
            return guard.reason() is None
        longest = max(0.0, guard.turn_seconds - guard.running_seconds + 0.02)
        guard.waits = True
        try:
            guard.waited(self._waiting.until(lambda: guard.interrupted, min(seconds, longest)))
        finally:
            guard.waits = False
        return guard.reason() is None
