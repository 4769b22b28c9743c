"""How many go at once, and which goes next: calls, jobs, runs. One over a cap waits in a line until its deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class WaitedTooLong(Exception):
    """The deadline passed before there was a slot."""


@dataclass(frozen=True, slots=True)
class Load:
    """Calls that hold a slot, and calls that wait for one."""

    inside: int
    waiting: int


class Gate:
    """Lets in at most `calls` at once, of one tenant at most `tenant_calls`, of one run at most `run_calls`.

    None is no cap. The tenant with the fewest calls inside for its weight goes next; among equals, they take turns in
    the proportion of their weights. A weight is 1 where `weights` has none. In the same way a tenant's runs share what
    it gets; a run's calls enter in the order they came. `tenant_calls` is a number, or tells each tenant's. `reserved`
    of the slots are for tenants that have less than half as many: they come in at once, whoever else has taken what was
    free.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tenant_calls: int | Callable[[str], int] | None = None,
        run_calls: int | None = None,
        weights: Mapping[str, float] | None = None,
        reserved: int = 0,
    ) -> None:
        if any(isinstance(cap, int) and cap < 1 for cap in (calls, tenant_calls, run_calls)):
            raise ValueError("a gate lets at least one call through")
        self._weights: Mapping[str, float] = {} if weights is None else weights  # which may be others later
        if any(weight <= 0 for weight in self._weights.values()):
            raise ValueError("a weight is above 0")
        self._tenant_calls, self._run_calls = tenant_calls, run_calls
        self._all = _Share(calls, reserved=reserved)

    @property
    def load(self) -> Load:
        """How many calls are here now."""
        return Load(self._all.inside, self._all.waiting)

    def slot(self, tenant: str, run: str, *, deadline: float | None, first: bool = False) -> Slot:
        """Hold a slot, for as long as the context is open.

        `deadline` is on the clock of `time.monotonic()`; without one it is waited for for ever.

        One that comes `first` waits before all others of its run, however many there are.

        Raises:
            WaitedTooLong: it was still waiting in the line.
        """
        return Slot(self, tenant, run, deadline, first)

    def resize(self, calls: int, *, reserved: int = 0) -> None:
        """Let in more at once, or fewer: those inside stay, and others wait until there is room again."""
        self._all.cap, self._all.reserved = calls, reserved
        self._let_in()

    def has_room(self, tenant: str) -> bool:
        """Whether one more of a tenant's would enter at once."""
        of_tenant = self._all.parts.get(tenant)
        return not (self._all.full or (of_tenant is not None and of_tenant.full))

    def load_of(self, tenant: str) -> Load:
        """Return how many of a tenant's are here now."""
        of_tenant = self._all.parts.get(tenant)
        return Load(of_tenant.inside, of_tenant.waiting) if of_tenant is not None else Load(0, 0)

    def outdone(self, tenant: str) -> bool:
        """Whether another tenant waits that would still have no more for its weight, had it one slot of this one's."""
        mine = self._all.parts.get(tenant)
        return mine is not None and any(
            part.waiting and not part.full and (part.inside + 1) / part.weight <= (mine.inside - 1) / mine.weight
            for part in self._all.parts.values()
            if part is not mine
        )

    async def enter(self, tenant: str, run: str, deadline: float | None, *, first: bool) -> _Share:
        """Take a slot, which is then to be left; see `slot`."""
        share = self._share(tenant, run)
        # While there is room for one that waits, none waits: it was let in when the room came.
        if not (any(level.full for level in share.levels) or self._all.keeps_out(share.levels[1])):
            share.let_in()
        else:
            await self._wait(share, deadline, first)
        return share

    def _share(self, tenant: str, run: str) -> _Share:
        cap = self._tenant_calls(tenant) if callable(self._tenant_calls) else self._tenant_calls
        of_tenant = self._all.part(tenant, cap, self._weights.get(tenant, 1.0))
        return of_tenant.part(run, self._run_calls, 1.0)

    async def _wait(self, share: _Share, deadline: float | None, first: bool) -> None:
        waiter = asyncio.get_running_loop().create_future()
        share.enqueue(waiter, first=first)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await waiter
        except (asyncio.CancelledError, TimeoutError) as error:
            if waiter.done() and not waiter.cancelled():
                self.leave(share)  # the slot was handed over in the same moment
            else:
                share.dequeue(waiter)
            if isinstance(error, TimeoutError):
                raise WaitedTooLong("others were ahead in the queue until the deadline") from None
            raise

    def leave(self, share: _Share) -> None:
        """Give a slot back."""
        share.let_out()
        self._let_in()

    def _let_in(self) -> None:
        while (run := self._all.next()) is not None:
            run.let_first_in()


class Slot:
    """A slot of a gate, held while the context is open. No generator: each call of a model holds half a dozen."""

    __slots__ = ("_deadline", "_first", "_gate", "_run", "_share", "_tenant")

    def __init__(self, gate: Gate, tenant: str, run: str, deadline: float | None, first: bool = False) -> None:
        self._gate, self._tenant, self._run, self._deadline, self._first = gate, tenant, run, deadline, first

    async def __aenter__(self) -> None:
        self._share = await self._gate.enter(self._tenant, self._run, self._deadline, first=self._first)

    async def __aexit__(self, *_: object) -> None:
        self._gate.leave(self._share)


class _Share:
    """A gate's slots, or what a tenant or a run has of them. Its `parts` are those in use; a run's has a queue.

    Among shares that have equally much, start-time fair queueing decides: the lowest `start_tag` goes next. Each entry
    adds to it, the less the greater the weight. `virtual_time` is the tag of the part that went last. A part that comes
    anew begins there, so that it has no turns saved up.
    """

    def __init__(
        self, cap: int | None, weight: float = 1.0, above: _Share | None = None, key: str = "", reserved: int = 0
    ) -> None:
        self.cap, self.weight, self.above, self.key, self.reserved = cap, weight, above, key, reserved
        self.levels: tuple[_Share, ...] = (self, *(above.levels if above else ()))
        self.inside = self.waiting = 0
        self.virtual_time = 0.0
        self.start_tag = above.virtual_time if above else 0.0
        self.parts: dict[str, _Share] = {}
        self.queue: dict[asyncio.Future[None], None] = {}  # a dict for its order: one may leave from the middle

    @property
    def full(self) -> bool:
        return self.cap is not None and self.inside >= self.cap

    def part(self, key: str, cap: int | None, weight: float = 1.0) -> _Share:
        """The share of a tenant, or of one of its runs, within this one."""
        part = self.parts.get(key)
        if part is None:
            part = self.parts[key] = _Share(cap, weight, self, key)
        part.cap, part.weight = cap, weight  # which may be others than when it was made
        return part

    def keeps_out(self, part: _Share) -> bool:
        """Whether what is left is reserved for others than this part."""
        if self.cap is None or not self.reserved:
            return False
        return part.inside >= max(1, self.reserved // 2) and self.cap - self.inside <= self.reserved

    def next(self) -> _Share | None:
        """The run whose first waiter enters next, if any may."""
        if self.full or self.queue:
            return None if self.full else self
        waiting = [part for part in self.parts.values() if part.waiting and not self.keeps_out(part)]
        for part in sorted(waiting, key=lambda part: (part.inside / part.weight, part.start_tag)):
            if (run := part.next()) is not None:
                return run
        return None

    def let_in(self) -> None:
        """Count a call of this run in."""
        for share in self.levels:
            share.inside += 1
            if share.above is not None:
                share.above.virtual_time = max(share.above.virtual_time, share.start_tag)
                share.start_tag = share.above.virtual_time + 1 / share.weight

    def let_out(self) -> None:
        """Count a call of this run out."""
        for share in self.levels:
            share.inside -= 1
            share._forget()

    def enqueue(self, waiter: asyncio.Future[None], *, first: bool) -> None:
        """Put a waiter at the end of this run's queue, or at its beginning."""
        if first:
            self.queue = {waiter: None, **self.queue}
        else:
            self.queue[waiter] = None
        for share in self.levels:
            share.waiting += 1

    def dequeue(self, waiter: asyncio.Future[None]) -> None:
        """Take a waiter out of this run's queue, if it is still there."""
        if waiter in self.queue:
            del self.queue[waiter]
            for share in self.levels:
                share.waiting -= 1
                share._forget()

    def let_first_in(self) -> bool:
        """Give a free slot to the first waiter of this run's queue; False where that one has given up meanwhile."""
        waiter = next(iter(self.queue))
        if waiter.done():
            self.dequeue(waiter)
            return False
        self.let_in()
        self.dequeue(waiter)
        waiter.set_result(None)
        return True

    def _forget(self) -> None:
        if self.above is not None and not self.inside and not self.waiting:
            del self.above.parts[self.key]
