"""One attempt at a model call, and its hold: reserved, dispatched, and resolved whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace

from rlm_server.broker.counters import Counters
from rlm_server.broker.learned_cap import LearnedCap
from rlm_server.broker.provider import DeadlinePassed, Failure, ModelReply, ModelRequest, NotRecorded, ProviderError
from rlm_server.broker.routes import Route
from rlm_server.broker.worst_case import bound
from rlm_server.database.engine import DatabaseError, DatabaseLostError
from rlm_server.ledger import Amounts, BudgetBusy, BudgetError, BudgetExceeded, Hold, HoldUnknown, Ledger, Usage, settle
from rlm_server.shares.gate import Gate, Slot, WaitedTooLong
from rlm_server.tracing.spans import Span, of_request
from sandbox.cancellation import cancel_and_wait, run_to_completion

log = logging.getLogger(__name__)

_NOTHING = Amounts()

MAX_TOKENS = 1_000_000_000
"""No report of more tokens than this is believed."""


class InTurn(Slot):
    """A slot of a gate, held while the context is open.

    Raises:
        DeadlinePassed: there was none until the deadline; not billed.
    """

    __slots__ = ()

    async def __aenter__(self) -> None:
        try:
            await super().__aenter__()
        except WaitedTooLong:
            raise DeadlinePassed("other calls were ahead in the queue until the deadline", billed=False) from None


@dataclass(slots=True)
class Attempt:
    """A request that is sent once, if at all, under a hold for its worst case.

    Where there is no room for that, and the request allows it, it is sent with a lower `max_tokens`; `request` and
    `hold` are then those that left. `input_tokens` is the most that its input has.

    `trial` is entered before the request leaves, may refuse it, and sees how it ended. `begun` is called when the hold
    is there. `deadline` is on the clock of `time.monotonic()`; once sent, the answer may take `seconds`, but not beyond
    the deadline.
    """

    request: ModelRequest
    input_tokens: int
    route: Route
    hold: Hold
    ledger: Ledger
    learned: LearnedCap
    provider_gate: Gate
    ledger_gate: Gate
    trial: Callable[[], AbstractContextManager[None]]
    begun: Callable[[], None]
    deadline: float
    seconds: float
    counters: Counters
    ahead: Callable[[], float] | None = None
    """Where the reply is wanted before its cost is in the books: how many seconds that may wait for another write.

    `settling` is then what writes it."""
    settling: asyncio.Task[bool] | None = None
    spent: Amounts = _NOTHING
    """What it cost, where it failed."""
    _place: int | None = None
    """The bound it may go with, once it counts among those that go with a lower one."""
    _held: bool = False
    """The hold is there, and its end is not decided."""
    _dispatched: bool = False
    """The ledger may say that it was."""
    _sent: bool = False

    async def make(self) -> tuple[ModelReply, Amounts]:
        """Make the attempt, settle the hold, and return the reply and what it cost.

        When this returns or raises, cancellation included, the hold is resolved (a reply's that is wanted `ahead`, when
        `settling` has ended): posted with the usage reported; voided
        where the request never left or the provider does not bill its failure; posted as the route says where it may
        have billed it; posted in full in every other case, an answer that the deadline or a cancellation overtook among
        them. Only where the database fails for longer than
        `settle` tries, it stays as it is, which takes its whole amount, and the next start resolves it.

        Raises:
            BudgetExceeded: what is already spent leaves too little for the hold.
            BudgetBusy: other holds left too little until the deadline.
            ProviderError: there was no answer; `billed` says whether anything was posted, `spent` what.
        """
        try:
            return await self._reserve_and_send()
        except (Exception, asyncio.CancelledError) as error:
            if self._held:
                cost, held = self._cost_of(error), self.hold.amounts
                partly = None if cost in (_NOTHING, held) else cost
                settled = await run_to_completion(self._resolve(partly, void=cost == _NOTHING))
                self.spent = cost if settled or not self._dispatched else held
                billed = self.spent != _NOTHING
                if isinstance(error, ProviderError) and error.billed != billed:
                    # What the ledger counts, whatever the provider did.
                    raise ProviderError(error.failure, str(error), billed=billed) from None
            raise
        finally:
            if self._place is not None and self.request.lowering is not None:
                self.request.lowering.outputs.ended()

    def _cost_of(self, error: BaseException) -> Amounts:
        if not self._sent or (isinstance(error, ProviderError) and not error.billed):
            return _NOTHING
        if isinstance(error, DeadlinePassed) or not isinstance(error, ProviderError):
            return self.hold.amounts
        return self.route.cost_of_failure(self.hold.amounts, self.request.max_tokens)

    async def _reserve_and_send(self) -> tuple[ModelReply, Amounts]:
        await self._prepare()
        # The provider's slot comes first: thousands that queue for it have nothing to do with the ledger, and one
        # commit is enough to reserve and dispatch. But where other holds of the tenant are in the way, it waits for the
        # money without the slot: with it, it would keep calls that have theirs from a provider that stands idle.
        try:
            return await self._send_after(self._reserve_and_dispatch)
        except BudgetBusy:
            if time.monotonic() >= self.deadline:
                raise
        await self._reserve_in_line()
        return await self._send_after(self._dispatch)

    async def _prepare(self) -> None:
        """Have the provider ready before anything is held: what cannot leave yet is not to be paid for."""
        if self.route.ready:
            return
        try:
            async with asyncio.timeout(max(0.0, self.deadline - time.monotonic())):
                await self.route.prepare()
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the request was sent", billed=False) from None

    async def _send_after(self, dispatch: Callable[[], Awaitable[None]]) -> tuple[ModelReply, Amounts]:
        async with self._slot(self.learned.gate):
            await self.learned.ready(self.deadline)
            async with self._slot(self.provider_gate):
                with self.trial():
                    await dispatch()
                    with self.learned.request(), self._span() as span:
                        reply = await self._send()
                        if reply.usage is not None:
                            span.note(
                                gen_ai__usage__input_tokens=reply.usage.input,
                                gen_ai__usage__output_tokens=reply.usage.output,
                            )
                return await self._charge(reply)

    def _span(self) -> AbstractContextManager[Span]:
        return of_request(
            f"chat {self.request.model}",
            gen_ai__operation__name="chat",
            gen_ai__provider__name=self.route.provider_name,
            gen_ai__request__model=self.request.model,
            gen_ai__request__max_tokens=self.request.max_tokens,
            rlm__run_id=self.hold.run,
        )

    def _slot(self, gate: Gate) -> InTurn:
        return InTurn(gate, self.hold.tenant, self.hold.run, self.deadline)

    async def _reserve(self, until: float, *, dispatch: bool = False) -> None:
        self._dispatched = dispatch
        try:
            await self.ledger.reserve(self.hold, deadline=until, dispatch=dispatch)
        except DatabaseError as error:
            # The work may have been done though its answer was lost.
            self._held = isinstance(error, DatabaseLostError)
            raise self._not_recorded(error) from None
        self._held = True
        self.begun()

    async def _reserve_and_dispatch(self) -> None:
        async with self._slot(self.ledger_gate):
            try:
                await self._reserve(time.monotonic(), dispatch=True)
            except BudgetError:
                if not self._lower():
                    raise
                await self._reserve(time.monotonic(), dispatch=True)

    async def _reserve_in_line(self) -> None:
        """Wait in line with the hold, which is made lower as soon as it may be."""
        refused: BudgetExceeded | None = None
        lowering = asyncio.create_task(self._lower_in_line())
        try:
            await self._reserve(self.deadline)
        except BudgetExceeded as error:  # it fitted when it began to wait: others have cost more than they might have
            refused = error
        finally:
            await cancel_and_wait(lowering)
        if refused is not None:
            if not self._lower():
                raise refused
            await self._reserve(self.deadline)

    async def _lower_in_line(self) -> None:
        lowering = self.request.lowering
        if lowering is not None and self._place is None:
            self._place = await lowering.outputs.lowered(self.request.max_tokens, lowering.least, self._besides)
            if await self.ledger.lower(self._hold_of(self._place)):
                self._bound_by(self._place)

    def _lower(self) -> bool:
        """Lower the hold, which is not there yet. False where it is lower already, or may not be."""
        lowering, most = self.request.lowering, self.request.max_tokens
        if self._place is None and lowering is not None:
            self._place = lowering.outputs.lower(most, lowering.least, self._besides)
        if self._place is None or self._place >= most:
            return False
        self._bound_by(self._place)
        return True

    @property
    def _besides(self) -> int:
        """What it may cost besides its output, as so many tokens of that."""
        most, price = self.request.max_tokens, self.route.price
        least = price.bound(self.input_tokens, 0)
        return least * most // max(1, price.bound(self.input_tokens, most) - least)

    def _bound_by(self, max_tokens: int) -> None:
        """Ask for no more than is held, and hold no less than is asked for."""
        self.request, self.hold = replace(self.request, max_tokens=max_tokens), self._hold_of(max_tokens)

    def _hold_of(self, max_tokens: int) -> Hold:
        return replace(self.hold, amounts=bound(self.input_tokens, max_tokens, self.route.price))

    async def _dispatch(self) -> None:
        try:
            async with self._slot(self.ledger_gate):
                self._dispatched = True
                await self.ledger.dispatch(self.hold.id)
        except DatabaseError as error:
            raise self._not_recorded(error) from None

    async def _send(self) -> ModelReply:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed("the deadline passed before the request was sent", billed=False)
        self._sent = True
        try:
            async with asyncio.timeout(min(left, self.seconds)):
                reply = await self.route.provider.complete(replace(self.request, model=self.route.upstream))
        except TimeoutError:
            if left < self.seconds:
                raise DeadlinePassed("no answer came before the deadline", billed=True) from None
            words = f"no answer came within {self.seconds:g} s"
            raise ProviderError(Failure.TIMED_OUT, words, billed=True) from None
        # JSON can spell half a surrogate pair, which can be neither stored nor sent on.
        said = reply.text.encode("utf-8", "replace").decode()
        return replace(reply, text=said, max_tokens=self.request.max_tokens)

    async def _charge(self, reply: ModelReply) -> tuple[ModelReply, Amounts]:
        if reply.usage is None or not _credible(reply.usage):
            reply, spent, resolving = replace(reply, usage=None), self.hold.amounts, self._resolve()
        else:
            if self.request.lowering is not None:
                self.request.lowering.outputs.saw(reply.usage.output, cut=reply.stopped == "length")
            spent = Amounts(self.route.price.cost(reply.usage), reply.usage.input + reply.usage.output, 1)
            resolving = self._resolve(spent, reply.usage)
        if self.ahead is not None:
            self._held, self.settling = False, asyncio.create_task(resolving)
            return reply, spent
        settled = await run_to_completion(resolving)
        # The answer was paid for, so the caller gets it, with the cost that the ledger counts.
        return reply, spent if settled else self.hold.amounts

    def _not_recorded(self, error: DatabaseError) -> ProviderError:
        log.error("a call was not sent, because its hold %s could not be written: %s", self.hold.id, error)
        return NotRecorded("this server's books cannot be written; nothing was sent")

    async def _resolve(self, actual: Amounts | None = None, usage: Usage | None = None, *, void: bool = False) -> bool:
        """Resolve the hold: void, with an actual cost, or in full. False where the database did not let it."""
        self._held = False

        async def resolve() -> None:
            async with self.ledger_gate.slot(self.hold.tenant, self.hold.run, deadline=None):
                if actual is not None:
                    patience = 0.0 if self.ahead is None or self.ledger.crowded(self.hold.tenant) else self.ahead()
                    await self.ledger.post(self.hold.id, actual, usage, patience=patience)
                elif not void:
                    await self.ledger.post_in_full(self.hold.id)
                else:
                    with suppress(HoldUnknown):  # the ledger never got it
                        await self.ledger.void(self.hold.id)

        settled = await settle(self.hold.id, resolve)
        self.counters.unsettled += not settled
        return settled


def _credible(usage: Usage) -> bool:
    """Whether a report can be charged: a part larger than its whole would be paid out, a vast one refused."""
    parts = (usage.cache_read, usage.cache_write, usage.reasoning)
    return (
        min(usage.input, usage.output, *parts) >= 0
        and max(usage.input, usage.output, *parts) <= MAX_TOKENS
        and usage.cache_read + usage.cache_write <= usage.input
    )
