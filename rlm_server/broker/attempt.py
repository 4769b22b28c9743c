"""One attempt at a model call, and its hold: reserved, dispatched, and resolved whatever happens in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from rlm_server.broker.calls import Failure, ModelReply, ModelRequest, Provider, ProviderError, Usage
from rlm_server.broker.concurrency import Gate
from rlm_server.broker.prices import Price
from rlm_server.ledger import Amounts, Hold, Ledger

_T = TypeVar("_T")

MOST_TOKENS = 1_000_000_000
"""No report of more tokens than this is believed."""


async def attempt(
    request: ModelRequest, provider: Provider, price: Price, *, ledger: Ledger, hold: Hold, gate: Gate, deadline: float
) -> tuple[ModelReply, Amounts]:
    """Send a request once, under a hold for its worst case, and settle the hold.

    `deadline` is on the clock of `time.monotonic()`. Returns the reply and what was posted. When this returns or
    raises, cancellation included, the hold is resolved: posted with the usage reported; voided where the request
    never left or the provider does not bill its failure; posted in full in every other case.

    Raises:
        BudgetExceeded: what is already spent leaves too little for the hold.
        BudgetBusy: other holds left too little until the deadline.
        ProviderError: the provider did not answer; `billed` says whether the whole hold was posted.
    """
    await ledger.reserve(hold, deadline=deadline)
    sent = False
    try:
        # Money comes before the provider's slot. A call that waits for money then waits on its own tenant only; with
        # the slot in hand it would keep other tenants' calls, which have theirs, from a provider that stands idle.
        async with gate.slot(hold.tenant, deadline=deadline):
            await _finished(ledger.dispatch(hold.id))
            sent = True
            reply = await _answer(provider, request, deadline)
    except (Exception, asyncio.CancelledError) as error:
        free = not sent or (isinstance(error, ProviderError) and not error.billed)
        await _finished(ledger.void(hold.id) if free else ledger.post_in_full(hold.id))
        raise
    if reply.usage is None or not _credible(reply.usage):
        await _finished(ledger.post_in_full(hold.id))
        return replace(reply, usage=None), hold.amounts
    spent = Amounts(price.cost(reply.usage), reply.usage.input + reply.usage.output, 1)
    await _finished(ledger.post(hold.id, spent, reply.usage))
    return reply, spent


def _credible(usage: Usage) -> bool:
    """Whether a report can be charged: a part larger than its whole would be paid out, a vast one refused."""
    parts = (usage.cache_read, usage.cache_write, usage.reasoning)
    return (
        min(usage.input, usage.output, *parts) >= 0
        and max(usage.input, usage.output, *parts) <= MOST_TOKENS
        and usage.cache_read + usage.cache_write <= usage.input
    )


async def _answer(provider: Provider, request: ModelRequest, deadline: float) -> ModelReply:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ProviderError(Failure.TIMED_OUT, "the deadline passed before the request was sent", billed=False)
    try:
        async with asyncio.timeout(left):
            return await provider.complete(request)
    except TimeoutError:
        raise ProviderError(Failure.TIMED_OUT, "no answer came before the deadline", billed=True) from None


async def _finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Await work to its end, even while being cancelled; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
