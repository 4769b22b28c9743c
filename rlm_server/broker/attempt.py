"""One attempt at a model call, and its hold: reserved, dispatched, and resolved whatever happens in between."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from rlm_server.broker.calls import Failure, ModelReply, ModelRequest, Provider, ProviderError
from rlm_server.broker.concurrency import Gate
from rlm_server.broker.prices import Price
from rlm_server.ledger import Amounts, Hold, Ledger, Usage
from sandbox.settling import to_the_end

MOST_TOKENS = 1_000_000_000
"""No report of more tokens than this is believed."""


async def attempt(
    request: ModelRequest,
    provider: Provider,
    price: Price,
    *,
    ledger: Ledger,
    hold: Hold,
    gate: Gate,
    deadline: float,
    seconds: float,
) -> tuple[ModelReply, Amounts]:
    """Send a request once, under a hold for its worst case, and settle the hold.

    `deadline` is on the clock of `time.monotonic()`; once sent, the answer may take `seconds`, but not beyond the
    deadline. Returns the reply and what was posted. When this returns or raises, cancellation included, the hold is
    resolved: posted with the usage reported; voided where the request never left or the provider does not bill its
    failure; posted in full in every other case.

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
            await to_the_end(ledger.dispatch(hold.id))
            sent = True
            reply = await _answer(provider, request, deadline, seconds)
    except (Exception, asyncio.CancelledError) as error:
        free = not sent or (isinstance(error, ProviderError) and not error.billed)
        await to_the_end(ledger.void(hold.id) if free else ledger.post_in_full(hold.id))
        raise
    if reply.usage is None or not _credible(reply.usage):
        await to_the_end(ledger.post_in_full(hold.id))
        return replace(reply, usage=None), hold.amounts
    spent = Amounts(price.cost(reply.usage), reply.usage.input + reply.usage.output, 1)
    await to_the_end(ledger.post(hold.id, spent, reply.usage))
    return reply, spent


def _credible(usage: Usage) -> bool:
    """Whether a report can be charged: a part larger than its whole would be paid out, a vast one refused."""
    parts = (usage.cache_read, usage.cache_write, usage.reasoning)
    return (
        min(usage.input, usage.output, *parts) >= 0
        and max(usage.input, usage.output, *parts) <= MOST_TOKENS
        and usage.cache_read + usage.cache_write <= usage.input
    )


async def _answer(provider: Provider, request: ModelRequest, deadline: float, seconds: float) -> ModelReply:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ProviderError(Failure.TIMED_OUT, "the deadline passed before the request was sent", billed=False)
    try:
        async with asyncio.timeout(min(left, seconds)):
            reply = await provider.complete(request)
    except TimeoutError:
        late = "before the deadline" if left < seconds else f"within {seconds:g} s"
        raise ProviderError(Failure.TIMED_OUT, f"no answer came {late}", billed=True) from None
    # JSON can spell half a surrogate pair, which can be neither stored nor sent on.
    return replace(reply, text=reply.text.encode("utf-8", "replace").decode())
