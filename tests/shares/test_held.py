"""Bytes held for a tenant: counted before, refused above the limit, and never another's."""

from __future__ import annotations

import pytest

from rlm_server.shares.held import Held, TooMuchHeld


def test_what_would_be_too_much_is_refused_by_its_limit_and_not_counted() -> None:
    held = Held(lambda _: 100)
    held.take("a", 60, "a queue")
    with pytest.raises(TooMuchHeld, match=r"41 bytes more than the 60 .* limit is 100 \(tenant_held_bytes\)"):
        held.take("a", 41, "an answer")
    assert held.of("a") == 60
    assert held.room("a") == 40


def test_what_one_tenant_holds_takes_nothing_from_another() -> None:
    held = Held({"a": 10, "b": 20}.__getitem__)
    held.take("a", 10, "a queue")
    held.take("b", 20, "a queue")
    held.give_back("a", 10)
    assert (held.of("a"), held.of("b")) == (0, 20)


def test_what_was_held_in_a_block_is_given_back_however_it_ends() -> None:
    held = Held(lambda _: 10)
    with pytest.raises(ValueError, match="inside"), held.holding("a", 10, "a text"):
        raise ValueError("inside")
    assert held.of("a") == 0
