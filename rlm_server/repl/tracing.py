"""Lineage: which parts of a context stand in the prompts of model calls that were sent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlm_server.contexts.passages import Traced
from rlm_server.repl.events import CallTraced
from rlm_server.shares.host_time import charged
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from sandbox.cancellation import until_ended

if TYPE_CHECKING:  # it comes with numpy, which a server does without until a call is traced
    from rlm_server.contexts.lineage import Lineage

log = logging.getLogger(__name__)

KNOWN = 1_000
"""Prompts whose passages are remembered: those that came last."""

Tell = Callable[[CallTraced], None]


@dataclass(frozen=True, slots=True)
class TracedContext:
    """A context of a tenant's. `open_lineage` gives its index, which may have to be built: on the tenant's bill."""

    tenant: str
    shares: Shares
    open_lineage: Callable[[], Coroutine[Any, Any, Lineage]]


class Tracer:
    """Traces the prompts of one run's, or session's, calls. An async context manager.

    Leaving it waits for the last, or, where it is left by an exception, gives them up. Without a context there is
    nothing to trace.
    """

    def __init__(self, context: TracedContext | None = None) -> None:
        self._context = context
        self._lineage: asyncio.Task[Lineage] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._known: OrderedDict[bytes, Traced] = OrderedDict()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.settle()
        await self.give_up()

    @property
    def busy(self) -> bool:
        """Whether some calls so far are not traced yet."""
        return bool(self._under_way)

    async def settle(self) -> None:
        """Wait until every call so far is traced; where this is cancelled, give them up."""
        try:
            while self._under_way:
                await asyncio.wait(self._under_way)
        except asyncio.CancelledError:
            await self._end(self._under_way)
            raise

    async def give_up(self) -> None:
        """Stop all tracing, and wait until it has stopped."""
        await self._end(self._under_way)
        if self._lineage is not None and not self._lineage.done():
            await self._end({self._lineage})

    async def _end(self, tasks: set[asyncio.Task[None]] | set[asyncio.Task[Lineage]]) -> None:
        for task in tasks:
            task.cancel()
        for task in [*tasks]:
            await until_ended(task)

    def trace(self, call_id: str, prompts: Sequence[str], tell: Tell) -> None:
        """Begin to trace a call that was sent; `tell` is told when it is done.

        Prompts that come again are looked at once. Where the turn's host time is used up, `more` says that not all was
        looked at.
        """
        if self._context is None:
            return
        task = asyncio.create_task(self._trace(self._context, call_id, prompts, tell))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _trace(self, context: TracedContext, call_id: str, prompts: Sequence[str], tell: Tell) -> None:
        try:
            passages, more, at = [], False, 0
            for prompt in prompts:
                traced = await self._traced(context, prompt, keep=len(prompts) > 1)
                passages += [replace(one, prompt_start=at + one.prompt_start) for one in traced.passages]
                more, at = more or traced.more, at + len(prompt)
            tell(CallTraced(call_id, tuple(passages), more))
        except Exception:
            log.exception("call %s could not be traced", call_id)

    async def _traced(self, context: TracedContext, prompt: str, *, keep: bool) -> Traced:
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        if key in self._known:
            return self._known[key]
        async with self._one_at_a_time:
            if key in self._known:  # another call had it looked at meanwhile
                return self._known[key]
            lineage = await asyncio.shield(self._opened(context))
            traced = await context.shares.threads.run(
                Purpose.LINEAGE, context.tenant, lambda cancelled: lineage.find(prompt, cancelled)
            )
            if keep and not traced.more:
                self._known[key] = traced
                while len(self._known) > KNOWN:
                    self._known.popitem(last=False)
            return traced

    def _opened(self, context: TracedContext) -> asyncio.Task[Lineage]:
        if self._lineage is None:
            with charged(context.shares.host_times.of(context.tenant)):
                self._lineage = asyncio.create_task(context.open_lineage())
        return self._lineage
