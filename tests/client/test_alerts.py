"""`rlm alerts`, `rlm webhook`, and the limits of accounts on models and what is told of: what they ask, and show."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from rlm.v1 import budget_pb2, types_pb2
from rlm_client.client import Client

from tests.client.fake_server import KEY
from tests.client.test_spending import ESCAPE, USD, Books, rlm
from tests.client.test_spending import books as books  # a fixture

DAY, MINUTE, MONTH = budget_pb2.WINDOW_SPAN_DAY, budget_pb2.WINDOW_SPAN_MINUTE, budget_pb2.WINDOW_SPAN_MONTH


def calls(number: int) -> types_pb2.Budget:
    return types_pb2.Budget(call_count=number)


def test_limits_on_a_model_are_changed_and_those_of_others_stay(books: Books) -> None:
    kept = budget_pb2.ModelLimit(model="gpt-*", span=DAY, limit=calls(1))
    account = books.budget.account
    account.account_id = "bob"
    account.model_limits.extend([kept, budget_pb2.ModelLimit(model="opus", span=DAY, limit=calls(1))])
    done = rlm(
        books.target, "account", "set", "bob", "--model", "opus", "--limit", "5", "--day", "none", "--minute", "9 calls"
    )
    assert done.exit_code == 0, done.output
    request = books.requests[-1]
    assert list(request.update_mask.paths) == ["model_limits"]
    assert list(request.account.model_limits) == [
        kept,
        budget_pb2.ModelLimit(model="opus", limit=types_pb2.Budget(nano_usd=5 * USD)),
        budget_pb2.ModelLimit(model="opus", span=MINUTE, limit=calls(9)),
    ]
    assert "gpt-* every day" in done.output
    assert "opus in all" in done.output
    assert rlm(books.target, "account", "set", "bob", "--model", "opus").exit_code == 2


def test_soft_limits_are_set_for_all_or_for_a_model_and_taken_back(books: Books) -> None:
    account = books.budget.account
    account.account_id = "bob"
    account.soft_limits.extend([budget_pb2.SoftLimit(percent=9), budget_pb2.SoftLimit(model="opus", percent=8)])
    done = rlm(
        books.target, "account", "set", "bob", "--soft", "80%", "--soft", "day 50 %", "--soft", "month 4 usd, 7 calls"
    )
    assert done.exit_code == 0, done.output
    request = books.requests[-1]
    assert list(request.update_mask.paths) == ["soft_limits"]
    assert list(request.account.soft_limits) == [
        budget_pb2.SoftLimit(model="opus", percent=8),
        budget_pb2.SoftLimit(percent=80),
        budget_pb2.SoftLimit(span=DAY, percent=50),
        budget_pb2.SoftLimit(span=MONTH, amount=types_pb2.Budget(nano_usd=4 * USD, call_count=7)),
    ]
    assert "80 % in all; 50 % every day" in done.output
    assert rlm(books.target, "account", "set", "bob", "--model", "opus", "--soft", "none").exit_code == 0
    assert list(books.requests[-1].account.soft_limits) == [budget_pb2.SoftLimit(percent=9)]


@pytest.mark.parametrize("wrong", ["x%", "-5%", "day", "day five", "year 5%", "1.5 tokens"])
def test_a_soft_limit_that_is_none_is_refused_before_anything_is_asked(books: Books, wrong: str) -> None:
    assert rlm(books.target, "account", "create", "bob", f"--soft={wrong}").exit_code == 2
    assert books.requests == []


def test_events_are_listed_page_by_page_with_what_was_spent_and_sent(books: Books) -> None:
    for number in range(3):
        event = budget_pb2.BudgetEvent(
            event_id=f"evt_{number}", number=number, account_id=f"ann{ESCAPE}", model="opus", span=DAY,
            window_label="2026-11-27", unit=types_pb2.BUDGET_UNIT_NANO_USD, percent=50, threshold=2 * USD,
            limit=4 * USD, used=3 * USD, delivery_state=budget_pb2.DELIVERY_STATE_GIVEN_UP,
            failure="the answer was 500",
        )  # fmt: skip
        event.time.FromDatetime(datetime(2026, 11, 27, 7, 30))
        books.events.append(event)
    done = rlm(books.target, "alerts", "--account", "ann", "--since", "2026-11-01")
    lines = done.output.splitlines()
    assert len(lines) == 3
    assert ESCAPE not in done.output
    assert lines[0].startswith("2026-11-27 07:30:00Z  ann")
    assert lines[0].endswith(
        "with opus in the day 2026-11-27: $3.00 of $2.00 (50 % of $4.00)  [given up: the answer was 500]"
    )
    first = books.requests[0]
    assert (first.account_id, first.since.ToDatetime(UTC)) == ("ann", datetime(2026, 11, 1, tzinfo=UTC))
    shown = rlm(books.target, "alerts", "--json").output.splitlines()
    assert [json.loads(line)["event_id"] for line in shown] == ["evt_0", "evt_1", "evt_2"]


def test_a_webhook_is_set_shown_tested_and_disabled(books: Books) -> None:
    made = rlm(books.target, "webhook", "set", "https://a", "--rotate")
    assert (made.exit_code, made.stdout.splitlines()) == (0, ["https://a", "whsec_x"])
    assert (books.requests[-1].url, books.requests[-1].rotate_secret) == ("https://a", True)
    assert books.requests[-1].request_id
    assert "whsec" not in rlm(books.target, "webhook", "set", "https://a").output
    assert rlm(books.target, "webhook", "show").exit_code == 0
    assert rlm(books.target, "webhook", "test").output == "it was taken\n"
    books.tested = budget_pb2.TestWebhookResponse(failure="the answer was 404")
    failed = rlm(books.target, "webhook", "test")
    assert (failed.exit_code, failed.output) == (1, "it was not taken: the answer was 404\n")
    assert rlm(books.target, "webhook", "disable").output == "https://a (disabled)\n"
    with Client(books.target, KEY) as client:
        assert client.get_webhook().enabled
        assert not client.test_webhook().taken
        assert not client.disable_webhook().enabled
