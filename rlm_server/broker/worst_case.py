"""The most that a request can cost: what is reserved before it leaves."""

from __future__ import annotations

from rlm_server.broker.limits import MAX_OUTPUT_TOKENS
from rlm_server.broker.prices.table import Price
from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from rlm_server.ledger import Amounts

FRAMING_TOKENS = 256
"""Allowed for what a provider or a chat template puts around a conversation."""

FRAMING_TOKENS_PER_MESSAGE = 16
"""Allowed for what goes around each message."""


def worst_case(request: ModelRequest, price: Price) -> Amounts:
    """The most that an attempt at a request can cost.

    Raises:
        ProviderError: the request cannot be sent as it is (BAD_REQUEST).
    """
    return bound(input_bound(request), request.max_tokens, price)


def input_bound(request: ModelRequest) -> int:
    """The most tokens that the input of a request can have.

    Without the model's own tokenizer it is bounded by its UTF-8 bytes: no token is shorter than one.

    Raises:
        ProviderError: the request cannot be sent as it is (BAD_REQUEST).
    """
    if not 1 <= request.max_tokens <= MAX_OUTPUT_TOKENS:
        raise ProviderError(Failure.BAD_REQUEST, f"max_tokens must be from 1 to {MAX_OUTPUT_TOKENS}", billed=False)
    try:
        size = len(request.system.encode()) + sum(len(message.content.encode()) for message in request.messages)
    except UnicodeEncodeError:
        raise ProviderError(Failure.BAD_REQUEST, "the prompt holds half a surrogate pair", billed=False) from None
    return size + FRAMING_TOKENS + FRAMING_TOKENS_PER_MESSAGE * len(request.messages)


def bound(input_tokens: int, max_tokens: int, price: Price) -> Amounts:
    """The most that an attempt can cost whose input has so many tokens at most."""
    return Amounts(price.bound(input_tokens, max_tokens), input_tokens + max_tokens, 1)
