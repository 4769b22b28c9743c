"""What is kept aside of a node's money and time, so that one that ends without an answer is asked once more.

The money is a reserve of the node's account (`ledger`), the time a part of the run's that work does not get. The call
itself is held like any other, so it never costs more than there is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rlm_server.broker.prices.table import Price
from rlm_server.broker.provider import ModelRequest, ProviderError
from rlm_server.broker.routes import Route
from rlm_server.broker.worst_case import FRAMING_TOKENS, FRAMING_TOKENS_PER_MESSAGE, bound, input_bound
from rlm_server.ledger import UNITS, Amounts, Limit
from rlm_server.repl.limits import RunLimits

INPUT_TOKENS, OUTPUT_TOKENS = 8_192, 1_024
"""Of the closing call that is reserved. Where more is left, it may be larger."""

LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS = 1_536, 256
"""A closing call with less than this is of no use."""

MOST_OUTPUT_TOKENS = 4_096

PART = 8
"""One of so many parts of a budget is reserved at most, and one call of four or more."""

SECONDS = 30.0
"""Reserved of a run's time for the closing call of its root: as much, or one of `TIME_PART` parts of a short run's."""

TIME_PART = 12

CHILD_SECONDS = 15.0
"""Reserved besides for the closing calls of each level of children: as much, or one of `CHILD_TIME_PART` parts."""

CHILD_TIME_PART = 24

HANDING_OVER = 4
"""One of so many parts of what a level of children has is for the code of their parents, to take what they said."""

BYTES_A_TOKEN = 3
"""Of text, at most so many fit surely into each token of a model's window."""

_MOST_TOKENS = 1 << 24
"""Of input that is thought of. No model reads as many."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a closing call may have: bytes of input in so many messages, and tokens of output."""

    input_bytes: int
    output_tokens: int


def reserve(budget: Limit, price: Price) -> Limit | None:
    """Return what to keep aside of a node's budget for its closing call, or None where that is too little for one."""
    wanted = bound(INPUT_TOKENS, OUTPUT_TOKENS, price)
    calls = None if budget.calls is None else min(1, budget.calls // 4)
    kept = Limit(_part(wanted.nano_usd, budget.nano_usd), _part(wanted.tokens, budget.tokens), calls)
    least = bound(LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS, price)
    return kept if kept != Limit() and _fits(least, kept) else None


def fits(request: ModelRequest, left: Limit, price: Price) -> bool:
    """Whether a request's worst case is within what is left. One that cannot be sent at all is: its sender says so."""
    try:
        return _fits(bound(input_bound(request), request.max_tokens, price), left)
    except ProviderError:
        return True


def covers(input_tokens: int, output_tokens: int, left: Limit, price: Price) -> bool:
    """Whether the worst case of a call with so many tokens is within what is left."""
    return _fits(bound(input_tokens, output_tokens, price), left)


def lowered(request: ModelRequest, left: Limit, kept: Amounts, price: Price) -> ModelRequest:
    """Return a request of a node's own that does not fit, with less output where only what is kept aside is in its way.

    So a small budget goes as far as it would without a reserve. What has room for no output of use stays as it is.
    """
    tokens = input_bound(request)
    if not _fits(bound(tokens, request.max_tokens, price) - kept, left):
        return request
    output = _most(request.max_tokens, lambda output: _fits(bound(tokens, output, price), left))
    return replace(request, max_tokens=output) if output >= OUTPUT_TOKENS else request


def _part(wanted: int, limit: int | None) -> int | None:
    return None if limit is None else min(wanted, limit // PART)


def _fits(amounts: Amounts, limit: Limit) -> bool:
    limits = ((getattr(amounts, unit), getattr(limit, unit)) for unit in UNITS)
    return all(most is None or amount <= most for amount, most in limits)


def rooms(left: Limit, route: Route, most_output: int, messages: int) -> Iterator[Room]:
    """Yield what a closing call may have of what is left: the less output, the more input. Nothing where none is."""
    most_output = min(most_output, MOST_OUTPUT_TOKENS)
    for output in dict.fromkeys((most_output, min(most_output, OUTPUT_TOKENS), min(most_output, LEAST_OUTPUT_TOKENS))):
        tokens = _input_tokens(left, route.price, output)
        size = tokens - FRAMING_TOKENS - FRAMING_TOKENS_PER_MESSAGE * messages
        if route.context_window is not None:
            size = min(size, (route.context_window - output) * BYTES_A_TOKEN)
        if tokens >= LEAST_INPUT_TOKENS and size > 0:
            yield Room(size, output)


def _input_tokens(left: Limit, price: Price, output: int) -> int:
    """Return the most tokens of input that are paid for beside so many of output; -1 where not even none are."""
    return _most(_MOST_TOKENS, lambda tokens: _fits(bound(tokens, output, price), left))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number from 0 to `limit` that fits, as all below it do; -1 where none does."""
    return bisect_left(range(limit + 1), True, key=lambda number: not fits(number)) - 1


def seconds(limits: RunLimits, depth: int = 0) -> float:
    """Return how long before the end of a run the work of its nodes at a depth ends, in seconds.

    Then a node is asked once more, for what is left until `closed`. The deeper a node, the earlier its work ends:
    its parent's code still runs when it has said what it knows.
    """
    return min(SECONDS, limits.wall_seconds / TIME_PART) + depth * _of_children(limits)


def closed(limits: RunLimits, depth: int) -> float:
    """Return how long before the end of a run the closing call of a node at a depth ends, in seconds."""
    return seconds(limits, depth - 1) + _of_children(limits) / HANDING_OVER if depth else 0.0


def _of_children(limits: RunLimits) -> float:
    return min(CHILD_SECONDS, limits.wall_seconds / CHILD_TIME_PART)
