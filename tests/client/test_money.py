"""Money goes over the wire exactly as it was written."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from rlm_client import Budget, nano_usd, usd


@pytest.mark.parametrize(
    ("amount", "nano"),
    [
        ("0.50", 500_000_000),
        (Decimal("0.000000001"), 1),
        (2, 2_000_000_000),
        ("1e-3", 1_000_000),
        ("0.1000000000000000000000000000000000", 100_000_000),
    ],
)
def test_an_amount_in_dollars_becomes_nano_dollars_exactly(amount: Any, nano: int) -> None:
    assert nano_usd(amount) == nano


def test_a_float_is_refused_because_it_is_not_exact() -> None:
    amount: Any = 0.1
    with pytest.raises(TypeError, match=r'not exact; write usd="0\.50"'):
        Budget(usd=amount)


@pytest.mark.parametrize("amount", ["", "a lot", "0", "-1", "NaN", "Infinity", "0.0000000001", "1.0000000001"])
def test_an_amount_that_is_no_budget_is_refused(amount: str) -> None:
    with pytest.raises(ValueError, match="US dollars"):
        Budget(usd=amount)


@pytest.mark.parametrize("amount", ["1e999999999", "1e-999999999", "9223372037"])
def test_an_amount_of_any_magnitude_is_judged_without_writing_it_out(amount: str) -> None:
    with pytest.raises(ValueError, match="than"):
        nano_usd(amount)


def test_a_budget_sets_only_the_limits_it_was_given() -> None:
    message = Budget(usd="0.25", calls=10).message()
    assert message.nano_usd == 250_000_000
    assert message.call_count == 10
    assert not message.HasField("token_count")


@pytest.mark.parametrize("limits", [{"tokens": 0}, {"calls": -1}])
def test_a_limit_of_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Budget(**limits)


def test_an_amount_is_written_out_exactly() -> None:
    assert usd(nano_usd("1234.000000001")) == "$1,234.000000001"
    assert usd(nano_usd("0.5")) == "$0.50"
