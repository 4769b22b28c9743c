"""Processor time that this very process spends for somebody: a turn, or a tenant outside of turns.

`charged` says for whom the work in its block is done. Tasks that are begun there, and the tasks that those begin, spend
on the same account, because each step of theirs is measured: see `measured_tasks`. Work in threads is measured by
`Threads`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic, process_time, thread_time
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")


MOST_A_MESSAGE = 0.001
"""Seconds of work that cannot be told apart, at most, that a message of a tenant's is taken to have made."""

MOST_A_SECOND = 1.0
"""Seconds of such work, at most, that a second of measured work is taken to have made."""

USUAL_A_MESSAGE, USUAL_A_SECOND = 0.0002, 0.5
"""What they usually make: in this proportion it is shared between them."""

MESSAGE_BYTES = 1 << 16
"""A message is counted once more for each of so many bytes."""

STEP_SECONDS = 8e-6
"""What the event loop takes for a step of a task, beside the step itself: a tenant may have thousands of small ones."""

SHARE_OUT_SECONDS = 0.1
"""How old it may be when somebody asks."""


_adding = threading.Lock()
"""Held for the moment in which something is added."""


class HostTime:
    """Seconds that were spent. Any thread may add to them. Without a `limit` there may be any number.

    What is spent counts in `within` as well. `tenant` is whom the work is for.
    """

    def __init__(self, limit: float | None = None, within: HostTime | None = None, tenant: str = "") -> None:
        self.limit, self.tenant = limit, tenant
        self._within = within
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """What was spent so far."""
        return self._seconds

    def spend(self, seconds: float) -> None:
        """Add to what was spent."""
        with _adding:
            account: HostTime | None = self
            while account is not None:
                account._seconds += seconds
                account = account._within

    def take(self) -> float:
        """Return what was spent, and begin at 0 again."""
        with _adding:
            seconds, self._seconds = self._seconds, 0.0
        return seconds

    def owe(self, seconds: float) -> None:
        """Add to it alone: what was taken and could not be billed, or was done elsewhere."""
        with _adding:
            self._seconds += seconds

    def over(self) -> bool:
        """Say whether it is above the limit."""
        return self.limit is not None and self._seconds > self.limit


class Unclaimed(HostTime):
    """What a call takes before it is known whom it is for. Whoever that is has it charged, and what follows."""

    def __init__(self) -> None:
        super().__init__()
        self._to: HostTime | None = None

    def spend(self, seconds: float) -> None:
        """Add to what was spent, or to what it is charged to."""
        if self._to is None:
            super().spend(seconds)
        else:
            self._to.spend(seconds)

    def claim(self, to: HostTime) -> None:
        """Charge to this what was spent, and from now on whatever is."""
        self._to = to
        to.spend(self.take())


class HostTimes:
    """What each tenant's work outside of turns has spent, and is not billed yet.

    Each of `under_way` charges what was done by now and not charged yet, such as by work in threads. They are called
    before anything is shared out or billed.
    """

    def __init__(self) -> None:
        self.under_way: list[Callable[[], None]] = []
        self._all = HostTime()
        self._totals: dict[str, HostTime] = {}
        self._of: dict[str, HostTime] = {}
        self._messages: Counter[str] = Counter()
        self._measured: dict[str, float] = {}
        """Of each tenant, what `share_out` has seen."""
        self._shared_out = process_time(), 0.0
        self._unmeasured = 0.0
        self._share_out_at = 0.0

    def of(self, tenant: str) -> HostTime:
        """Return what a tenant's work is charged to."""
        if tenant not in self._of:
            self._of[tenant] = HostTime(None, self._total(tenant), tenant)
        return self._of[tenant]

    def of_turn(self, tenant: str, limit: float) -> HostTime:
        """Return what the work for a tenant's turn is charged to, which may be so many seconds."""
        return HostTime(limit, self._total(tenant), tenant)

    def total(self, tenant: str) -> float:
        """Return the seconds that all work for a tenant has ever taken, billed or not."""
        if monotonic() >= self._share_out_at:
            self.share_out()
            self._share_out_at = monotonic() + SHARE_OUT_SECONDS
        return self._total(tenant).seconds

    def _total(self, tenant: str) -> HostTime:
        if tenant not in self._totals:
            self._totals[tenant] = HostTime(within=self._all)
        return self._totals[tenant]

    def spend_elsewhere(self, tenant: str, seconds: float) -> None:
        """Charge what another process did for a tenant: it counts as the tenant's, but is no work of this process."""
        self.of(tenant).owe(seconds)
        self._total(tenant).owe(seconds)

    def tenants(self) -> list[str]:
        """Return the tenants for whom anything was spent."""
        return list(self._of)

    def message(self, tenant: str, size: int = 0) -> None:
        """Count a message of so many bytes that a tenant sent, or was sent; a large one counts as several."""
        self._messages[tenant] += 1 + size // MESSAGE_BYTES

    def share_out(self) -> None:
        """Share among tenants what this process worked since the last time and that was not measured.

        That is what gRPC does in threads of its own, and the event loop between the steps of tasks. It is shared by
        messages and by what was measured.
        """
        for charge in self.under_way:
            charge()
        before, measured_before = self._shared_out
        now = process_time()
        left = now - before - (self._all.seconds - measured_before)
        unmeasured, shared_before = max(0.0, left), self._unmeasured
        messages, self._messages = self._messages, Counter()
        measured = {tenant: spent.seconds - self._measured.get(tenant, 0.0) for tenant, spent in self._totals.items()}
        usual = messages.total() * USUAL_A_MESSAGE + sum(measured.values()) * USUAL_A_SECOND
        times = unmeasured / max(usual, 1e-9)
        a_message = min(MOST_A_MESSAGE, times * USUAL_A_MESSAGE)
        a_second = min(MOST_A_SECOND, times * USUAL_A_SECOND)
        for tenant in messages.keys() | measured.keys():
            share = messages[tenant] * a_message + measured.get(tenant, 0.0) * a_second
            if share > 0:
                self.of(tenant).spend(share)
        self._measured = {tenant: spent.seconds for tenant, spent in self._totals.items()}
        # Of what was shared the last time, some may have been measured since: it is not shared again.
        self._shared_out, self._unmeasured = (now + min(max(0.0, -left), shared_before), self._all.seconds), unmeasured


_charged: ContextVar[HostTime | None] = ContextVar("charged", default=None)


def current() -> HostTime | None:
    """Return what the present work is charged to, or None."""
    return _charged.get()


@contextmanager
def charged(to: HostTime) -> Iterator[None]:
    """Charge all tasks and jobs that are begun in this block, but not the block's own steps: see `measured`."""
    before = _charged.set(to)
    try:
        yield
    finally:
        _charged.reset(before)


def measured_tasks(
    loop: asyncio.AbstractEventLoop, coroutine: Generator[Any, None, _T] | Coroutine[Any, Any, _T], **options: Any
) -> asyncio.Task[_T]:
    """Make a task whose steps are measured, where its work is charged to somebody. A task factory for a loop."""
    context = options.get("context")
    to = _charged.get() if context is None else context.get(_charged)
    if to is not None and asyncio.iscoroutine(coroutine):
        coroutine = _Measured(coroutine, to)
    return asyncio.Task(coroutine, loop=loop, **options)


def measured(work: Awaitable[_T], to: HostTime) -> Awaitable[_T]:
    """Return work whose steps are charged, to be awaited in the present task."""
    return _Measured(work if asyncio.iscoroutine(work) else _awaiting(work), to)


async def _awaiting(work: Awaitable[_T]) -> _T:
    return await work


def measured_function(function: Callable[..., _T]) -> Callable[..., _T]:
    """Return a function that charges to whom the present work is charged, in whichever thread it runs."""
    to = _charged.get()
    if to is None:
        return function

    def run(*arguments: Any) -> _T:
        began = thread_time()
        try:
            return function(*arguments)
        finally:
            to.spend(thread_time() - began)

    return run


class _Step(threading.local):
    """The step under way: the innermost of those that are within each other."""

    began: float | None = None
    """On the clock of `thread_time`, which takes microseconds to read: as much as a step may take. None for no step."""
    nested = 0.0
    """What work within it was charged to others."""
    ended: float | None = None
    """When work within it was suspended, which suspends all around it in the same moment."""


_step = _Step()


class _Measured(Coroutine[Any, Any, _T]):
    """A coroutine whose steps are measured."""

    def __init__(self, inner: Coroutine[Any, Any, _T], to: HostTime) -> None:
        self._inner, self._to = inner, to
        self._begun = False
        self.__name__ = getattr(inner, "__name__", "coroutine")
        self.__qualname__ = getattr(inner, "__qualname__", "coroutine")

    def send(self, value: Any) -> Any:
        return self._measured(self._inner.send, value)

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> Any:
        rest = () if error is None and trace is None else (error, trace)
        return self._measured(self._inner.throw, kind, *rest)

    def _measured(self, resume: Callable[..., Any], *values: Any) -> Any:
        """Take a step and charge it, without what within it was charged already.

        Work that was suspended goes on as the first thing in the step around it, and so began with that.
        """
        around, nested = _step.began, _step.nested
        began = around if around is not None and self._begun else thread_time()
        self._begun = True
        _step.began, _step.nested, _step.ended = began, 0.0, None
        ended: float | None = None
        try:
            suspended = resume(*values)
            ended = thread_time() if _step.ended is None else _step.ended
            return suspended
        finally:
            _step.ended = ended
            seconds = (thread_time() if ended is None else ended) - began
            self._to.spend(seconds - _step.nested + STEP_SECONDS)
            _step.began, _step.nested = around, nested + seconds

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, _T]:
        return self

    def __iter__(self) -> Generator[Any, Any, _T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)
