"""One turn of a session in a worker process, as the server sees it: from its request to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context
from itertools import islice

from sandbox.cancellation import run_to_completion
from sandbox.door import (
    ByChance,
    DoorRefusal,
    HostCall,
    Json,
    check_reply,
    digest_of,
    granted,
    granted_in_pieces,
    is_small,
    parse,
    refused,
)
from sandbox.inputs import InputListener, Inputs
from sandbox.limits import Limits
from sandbox.pool.frame_limits import FrameLimits
from sandbox.pool.held import Share
from sandbox.pool.process import Process, WorkerLost
from sandbox.turn import OutputListener, Status, Stop, Turn, TurnError
from sandbox.wire.frames import Frame, Kind, WireError
from sandbox.wire.turns import Observed

log = logging.getLogger(__name__)

CANCELLED_AT_ONCE = 32
"""Answers that are cancelled in one step of the event loop."""
INTERRUPT_SECONDS = 5.0
"""A worker that has not stopped a turn by then is killed."""
TURN_SLACK_SECONDS = 10.0
"""A worker that runs a turn for so much longer than it may is killed. Waiting for other turns there is not counted."""
CLOCK_SECONDS = 0.001
"""A timer may be early by so much."""

ANSWER_SECONDS = 10.0
"""An answer that goes on for so much longer than its turn is not waited for."""
AT_ONCE = 1 << 18
"""Bytes of a request or a reply that are read or written at once, on the loop: that takes less than a millisecond."""
HEAD_AT_ONCE = 1 << 14
"""The same, of a request's head."""

Answer = Callable[[HostCall], Awaitable[Json]]
"""Answers the guest's requests; a `DoorRefusal` it raises is raised inside the guest."""


class WorkerTurn:
    """A turn in a worker: its requests are answered, its output is received, and it ends or is stopped.

    Nothing of a turn can reach a later turn of the session. Once it has ended, none of its timers fires, none of its
    requests is answered, and no frame with its number is taken or sent.
    """

    def __init__(
        self,
        session: int,
        number: int,
        limits: Limits,
        answer: Answer,
        listener: OutputListener,
        inputs: Inputs | None = None,
        heard: InputListener = lambda _: None,
    ) -> None:
        """`number` tells the turn from the session's other turns. What it is told by chance is added to `inputs`."""
        self.number = number
        self.asked = False
        """Whether the turn has asked for anything, so that running it again would repeat that."""
        self.stopped = False
        """Whether it was to be stopped."""
        self._session, self._limits, self._answer, self._listener = session, limits, answer, listener
        self._inputs, self._note = inputs, heard
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """Of whoever runs the turn: what answers its requests works for them."""
        self._answering: set[asyncio.Task[None]] = set()
        self._process: Process | None = None
        self._end: asyncio.Future[Frame] = self._loop.create_future()
        self._over_now: asyncio.Future[None] = self._loop.create_future()
        """Done with `_end`, for whoever runs the turn: awaited by itself, it wakes that in one step of the loop."""
        self._hanging: asyncio.TimerHandle | None = None
        self._stopping: asyncio.TimerHandle | None = None
        self._allowed = FrameLimits(limits)
        self._printed: list[tuple[int, bytes]] = []
        self._began = self._ended_at = 0.0
        self._ran = 0.0
        self._running_since: float | None = None
        self._began_at = self._hangs_at = 0.0  # on the process's clock of turns

    async def run(self, process: Process, ask: Callable[[Process, int], Frame]) -> Frame:
        """Send the process the frame that `ask` makes for this turn, and return the frame with which the turn ended.

        A cancellation first stops the turn and waits until it has stopped.

        Raises:
            WorkerLost: the process died, or was killed because it hung.
            OSError: a file that must be handed over cannot be opened.
        """
        self._process, self._began = process, self._loop.time()
        try:
            process.clock.begin()
            self._began_at = process.clock.seconds
            process.turns.add(self)
            process.follow(self._session, self._heard)
            process.send(ask(process, self.number))
            self._time()
            return await self._ended()
        finally:
            process.unfollow(self._session)
            process.clock.end()
            process.turns.discard(self)
            self._call_off()

    @property
    def ran(self) -> float:
        """The seconds it has run so far, without what it waited for answers."""
        return self._ran + (self._loop.time() - self._running_since if self._running_since is not None else 0.0)

    @property
    def running_seconds(self) -> float:
        """The least that it has run so far: without what it may have waited for other turns in its worker."""
        if self._process is None:
            return 0.0
        return min(self.ran, self._process.clock.seconds - self._began_at)

    @property
    def end(self) -> Frame | None:
        """The frame with which the turn ended. None while it runs, and if it was lost with its worker."""
        return self._end.result() if self._end.done() and self._end.exception() is None else None

    @property
    def observed(self) -> Observed:
        """What the turn printed, and how long it took. To be used once it has ended."""
        stdout, stderr = (b"".join(data for s, data in self._printed if s == stream) for stream in (1, 2))
        return Observed(stdout, stderr, self._ended_at - self._began)

    def lost(self, message: str) -> Turn:
        """Return the result of a turn whose worker was lost: it is undone, with the output that was received."""
        observed, error = self.observed, TurnError(Stop.WORKER_LOST, message)
        return Turn(
            Status.ROLLED_BACK, *observed.texts, observed.output_bytes, False, self._ran, self._allowed.calls, error
        )  # fmt: skip

    async def _ended(self) -> Frame:
        """Wait until the turn has ended and none of its requests is being answered."""
        try:
            await self._over_now
        except asyncio.CancelledError:
            self.stop()
            await run_to_completion(asyncio.wait([self._end]))
            raise
        finally:
            if self._answering:
                await run_to_completion(asyncio.wait([*self._answering], timeout=ANSWER_SECONDS))
            if self._answering:
                log.error("%d answers go on although their turn has ended", len(self._answering))
        return self._end.result()

    # ---- what ends it --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the turn if it has not ended. A worker that does not stop it is killed."""
        if self.stopped or self._end.done():
            return
        self.stopped = True
        self._cancel_answers()
        if self._process is not None:
            self._process.send(Frame(Kind.INTERRUPT, self._session, turn=self.number))
            self._stopping = self._loop.call_later(INTERRUPT_SECONDS, self._not_stopped)

    def _not_stopped(self) -> None:
        if self._process is not None and not self._end.done():
            self._process.kill()

    def _time(self) -> None:
        """Start the turn's timer anew, or suspend it while a request is being answered."""
        now = self._loop.time()
        if self._running_since is not None:
            self._ran += now - self._running_since
        if self._hanging is not None:
            self._hanging.cancel()
        self._running_since = None
        if self._process is not None and not (self._answering or self._end.done()):
            self._running_since = now
            self._hangs_at = self._process.clock.seconds + self._limits.turn_seconds + TURN_SLACK_SECONDS
            self._hanging = self._loop.call_later(self._process.clock.until(self._hangs_at), self._hung)

    def _hung(self) -> None:
        if self._process is None or self._end.done():
            return
        left = self._process.clock.until(self._hangs_at)
        if left > CLOCK_SECONDS:  # other turns came, and this one could run for less of the time
            self._hanging = self._loop.call_later(left, self._hung)
            return
        self._process.kill()
        self._over(WorkerLost("the process that ran the turn hung and was killed"))

    def _over(self, end: Frame | WorkerLost) -> None:
        """Note how the turn ended, once, and cancel all of it that is still going on."""
        if self._end.done():
            return
        self._ended_at = self._loop.time()
        if isinstance(end, Frame):
            self._end.set_result(end)
        else:
            self._end.set_exception(end)
            self._end.exception()  # marks it as retrieved: a caller that cancelled the turn does not read it
        if not self._over_now.done():  # it is cancelled with the turn
            self._over_now.set_result(None)
        self._time()
        self._call_off()

    def _call_off(self) -> None:
        for timer in (self._hanging, self._stopping):
            if timer is not None:
                timer.cancel()
        self._cancel_answers()

    def _cancel_answers(self) -> None:
        """Cancel what is being answered, a few at a time: a thousand at once would keep everybody else waiting."""
        self._cancel_some(iter([*self._answering]))

    def _cancel_some(self, tasks: Iterator[asyncio.Task[None]]) -> None:
        some = list(islice(tasks, CANCELLED_AT_ONCE))
        for task in some:
            task.cancel()
        if some:
            self._loop.call_soon(self._cancel_some, tasks)

    # ---- what the worker says ------------------------------------------------------------------------------------

    def _heard(self, frame: Frame | None) -> None:
        """Take a frame. Raises `WireError` for a frame that a worker within its limits does not send."""
        if frame is None:
            self._over(WorkerLost("the process that ran the turn died"))
        elif frame.turn != self.number or self._end.done():
            self._allowed.stray()
        else:
            match frame.kind:
                case Kind.OUTPUT:
                    self._allowed.output(frame)
                    self._printed.append((frame.number, frame.data))
                    self._listener(frame.number, frame.data)
                case Kind.INPUTS:
                    self._noted(frame)
                case Kind.CALL:
                    self._called(frame)
                case Kind.DONE | Kind.FAILED:
                    self._over(frame)

    def _noted(self, frame: Frame) -> None:
        """Take what the turn was told by chance before its next request."""
        if self._inputs is None:
            raise WireError("inputs of a turn that has none")
        self._allowed.inputs(frame, len(self._inputs.log))
        try:
            piece = self._inputs.note(frame.number, frame.data, self._allowed.calls + 1)
        except ValueError as error:
            raise WireError(f"inputs that cannot be: {error}") from None
        self._note(piece)

    def _called(self, frame: Frame) -> None:
        self.asked = True
        self._allowed.call(frame, len(self._answering))
        request, process = self._allowed.calls, self._process
        if self.stopped or process is None:
            return  # nobody waits for the answer
        noted = self._inputs.refusal(request) if self._inputs is not None else None
        if noted is not None:
            self._send(frame.number, noted)
            return
        share = Share(process.held, lambda: process.unsent)
        try:
            share.count(len(frame.data))
        except DoorRefusal as refusal:
            self._send(frame.number, self._refused(request, refusal))
            return
        answered = self._answered(request, frame.number, frame.data, share)
        task = self._loop.create_task(answered, context=self._context.copy())
        self._answering.add(task)
        task.add_done_callback(self._ended_answer)
        self._time()

    def _ended_answer(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._time()

    def _send(self, number: int, reply: bytes) -> None:
        if self._process is not None and not self._end.done():
            self._process.send(Frame(Kind.REPLY, self._session, number, data=reply, turn=self.number))

    async def _answered(self, request: int, number: int, frame: bytes, share: Share) -> None:
        with share:
            try:
                call = await self._read(frame, share)
                share.count(-len(frame))
                del frame  # what was read of it stays counted until the reply is sent
                reply = await self._written(await self._answer(call), share)
                self._allowed.reply(len(reply))
            except asyncio.CancelledError:
                self.stop()  # somebody else cancelled the answer, for which the code would wait for ever
                return
            except Exception as error:
                reply = self._refused(request, error)
            self._send(number, reply)

    def _refused(self, request: int, error: Exception) -> bytes:
        """Return the reply to a request that failed. One refused by chance is refused when the turn runs again."""
        reply = _refusal(error)
        if self._inputs is not None and isinstance(error, ByChance):
            piece = self._inputs.refuse(request, reply)
            if piece:
                self._note(piece)
        return reply

    async def _read(self, frame: bytes, share: Share) -> HostCall:
        most = self._limits.frame_nodes
        if len(frame) <= HEAD_AT_ONCE or (len(frame) <= AT_ONCE and 0 < frame.find(b"\0") <= HEAD_AT_ONCE):
            return parse(frame, most, share.count, digest=digest_of(frame))
        return await share.in_pieces(lambda step: parse(frame, most, step, digest=digest_of(frame, step)))

    async def _written(self, value: Json, share: Share) -> bytes:
        most = self._limits.frame_bytes
        if is_small(value, AT_ONCE):
            reply = granted(value)
            check_reply(len(reply), most)
            share.count(len(reply))
            return reply
        return await share.in_pieces(lambda step: granted_in_pieces(value, most, step))


def _refusal(error: Exception) -> bytes:
    """Return the reply to a request that failed. A refusal within a group of tasks is one all the same."""
    while isinstance(error, ExceptionGroup):
        refusals = error.subgroup(DoorRefusal)
        error = (refusals if refusals is not None else error).exceptions[0]
    if isinstance(error, DoorRefusal):
        return error.reply()
    log.error("a host call failed", exc_info=error)
    return refused("RuntimeError", "the host could not answer; this is a fault of the server's")
