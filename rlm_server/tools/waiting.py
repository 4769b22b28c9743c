"""Calls that wait for a client's answer, of all runs that go on: found by their ids, and answered once."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from rlm_server.broker.provider import ModelReply
from rlm_server.clock import now
from rlm_server.repl.events import Ending, ModelCallRequested, ToolCallAnswered, ToolCallRequested
from rlm_server.shares.held import Held

KNOWN_ENDED = 1_000
"""Calls of a run that have ended of which it is known how; older ones are unknown."""
EXPECTED_SECONDS = 5.0
"""For so long an answer waits for its call, which was made before the server was started anew."""
_WIDEST = 8
"""Bytes of memory for a character of a result: its text, and what is built of it to look at it."""


class CallUnknown(Exception):
    """A run has made no such call."""

    def __init__(self, call: str) -> None:
        super().__init__(f"the run has made no call {call[:100]!r}")
        self.call = call


class CallEnded(Exception):
    """A call is no longer waited for."""

    def __init__(self, call: str, why: str) -> None:
        super().__init__(f"the call {call[:100]} is no longer waited for: {why}")
        self.call = call


class CallAnswered(Exception):
    """A call has another answer already."""

    def __init__(self, call: str) -> None:
        super().__init__(f"the call {call[:100]} has another answer already, and has one alone")
        self.call = call


class ResultRefused(ValueError):
    """What is submitted for a call cannot be its answer; `field` is of the request."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a client answers: `result` as JSON text, or why it failed."""

    result: str | None = None
    error: str = ""
    reply: ModelReply | None = None
    """Where it is a model's."""

    @property
    def digest(self) -> bytes:
        """What tells answers apart."""
        said = repr(self.reply)
        if self.reply is None:
            said = f"error {self.error}" if self.result is None else f"result {self.result}"
        return hashlib.sha256(said.encode("utf-8", "replace")).digest()

    @property
    def ending(self) -> Ending:
        """How the call ends with it."""
        return Ending.ERROR if self.result is None and self.reply is None else Ending.RESULT

    @property
    def size(self) -> int:
        """Bytes of memory that it takes at most, while it is looked at."""
        reply = "" if self.reply is None else self.reply.text
        return _WIDEST * (len(self.result or "") + len(self.error) + len(reply))


class NoAnswer(Exception):
    """Nobody has answered until the deadline."""


Requested = ToolCallRequested | ModelCallRequested
"""An event that tells of a call that waits."""
Check = Callable[[Submitted], Awaitable[None]]
"""Raises `ResultRefused` for what cannot be the answer."""


Body = TypeVar("Body", ToolCallRequested, ModelCallRequested)


@dataclass(slots=True)
class Waiting:
    """A call that waits. `body` is the event that tells of it, with all that it says."""

    body: Requested
    check: Check
    answer: asyncio.Future[Submitted]
    taken: bytes | None = None
    """The digest of the answer that is being taken, or was."""


@dataclass(slots=True)
class _Run:
    tenant: str
    waiting: dict[str, Waiting] = field(default_factory=dict)
    ended: OrderedDict[str, bytes | None] = field(default_factory=OrderedDict)
    """Of calls that have ended, the digest of the answer, or None where there was none."""
    expected: dict[str, asyncio.Event] = field(default_factory=dict)
    """Calls that were made before the server was started anew, and are soon made again: set when they are."""

    def end(self, call: str) -> None:
        waiting = self.waiting.pop(call)
        answered = waiting.answer.done() and not waiting.answer.cancelled()
        self.ended[call] = waiting.taken if answered else None
        while len(self.ended) > KNOWN_ENDED:
            self.ended.popitem(last=False)


class WaitingCalls:
    """The calls that wait. What they hold is counted for their tenants."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._runs: dict[str, _Run] = {}

    def open(self, run: str, tenant: str, expected: Iterable[str] = ()) -> None:
        """Take calls of a run, until it is closed. Those that are expected were made before, and will be again."""
        self._runs[run] = _Run(tenant, expected={call: asyncio.Event() for call in expected})

    def close(self, run: str) -> None:
        """Forget a run that has ended."""
        self._runs.pop(run, None)

    def body(self, run: str, call: str) -> Requested | None:
        """Return the event that tells of a call, with all that it says, as long as the call waits."""
        known = self._runs.get(run)
        waiting = None if known is None else known.waiting.get(call)
        return None if waiting is None else waiting.body

    async def ask(
        self,
        run: str,
        make: Callable[[str, int], Body],
        size: int,
        seconds: float,
        check: Check,
        emit: Callable[[Body | ToolCallAnswered], None],
        call: str = "",
    ) -> Submitted:
        """Tell of a call, wait for its answer, tell of its end, and return the answer.

        `make` makes the event, of the call's id and its deadline in Unix milliseconds; it holds so many bytes. The id
        is `call`, or a new one.

        Raises:
            NoAnswer: there was none within so many seconds.
            TooMuchHeld: the tenant has as much of the server's memory as it may.
        """
        of_run, call = self._runs[run], call or "tool_" + secrets.token_hex(16)
        with self._held.holding(of_run.tenant, size, "what a call says"):
            answer: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
            body = make(call, now() + round(seconds * 1000))
            of_run.waiting[call] = Waiting(body, check, answer)
            if call in of_run.expected:
                of_run.expected.pop(call).set()
            emit(body)
            ended = ToolCallAnswered(call, Ending.CANCELLED)
            try:
                async with asyncio.timeout(seconds):
                    submitted = await answer
                ended = ToolCallAnswered(call, submitted.ending, submitted.result or "", submitted.error)
            except TimeoutError:
                ended = ToolCallAnswered(call, Ending.TIMED_OUT)
                raise NoAnswer from None
            finally:
                of_run.end(call)
                emit(ended)
        return submitted

    async def submit(self, run: str, call: str, submitted: Submitted, keep: Callable[[], Awaitable[None]]) -> None:
        """Answer a call; the same answer again changes nothing.

        `keep` is awaited before the answer is given on, once it is sure to be the one.

        Raises:
            CallEnded: the run has ended, or the call without an answer.
            CallUnknown: the run has made no such call.
            CallAnswered: it has another answer.
            ResultRefused: this can be none.
            TooMuchHeld: the tenant has as much of the server's memory as it may.
        """
        of_run = self._runs.get(run)
        if of_run is None:
            raise CallEnded(call, "its run has ended")
        if call in of_run.expected:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXPECTED_SECONDS):
                    await of_run.expected[call].wait()
            if call in of_run.expected:
                raise CallEnded(call, _TOO_LATE)
        waiting, digest = of_run.waiting.get(call), submitted.digest
        if waiting is None:
            _check_again(of_run, call, digest)
            return
        if waiting.taken is None:
            with self._held.holding(of_run.tenant, submitted.size, "the result of a call"):
                await self._take(waiting, submitted, digest, keep)
        elif waiting.taken != digest:
            raise CallAnswered(call)

    async def _take(
        self, waiting: Waiting, submitted: Submitted, digest: bytes, keep: Callable[[], Awaitable[None]]
    ) -> None:
        await waiting.check(submitted)
        call = waiting.body.call_id
        if waiting.answer.done():
            raise CallEnded(call, _TOO_LATE)
        if waiting.taken is not None:  # another came first, while this was looked at
            if waiting.taken != digest:
                raise CallAnswered(call)
            return
        waiting.taken = digest
        try:
            await keep()
        except BaseException:
            waiting.taken = None
            raise
        if waiting.answer.done():
            raise CallEnded(call, _TOO_LATE)
        waiting.answer.set_result(submitted)


_TOO_LATE = "its deadline passed, or the code that waited was stopped"


def _check_again(of_run: _Run, call: str, digest: bytes) -> None:
    """Refuse an answer to a call that does not wait, unless it is the one that it has."""
    if call not in of_run.ended:
        raise CallUnknown(call)
    if of_run.ended[call] is None:
        raise CallEnded(call, _TOO_LATE)
    if of_run.ended[call] != digest:
        raise CallAnswered(call)
