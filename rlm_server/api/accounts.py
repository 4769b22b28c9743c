"""Reads and writes accounts: a customer as a request describes it, and any account as an answer shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ParamSpec

from rlm.v1 import budget_pb2

from rlm_server.api import requests, responses
from rlm_server.api.errors import InvalidField, Violation
from rlm_server.api.field_checks import FieldChecks
from rlm_server.ledger import Limit, ModelLimit, Scope, SoftLimit, Span, Statement, Window, names
from rlm_server.ledger.customers import Customer
from rlm_server.tenants import checks
from rlm_server.tenants.checks import Offered, WrongTerm

P = ParamSpec("P")

MAX_ACCOUNT_NAME = 200
"""Characters of the name of an account."""

SPANS = {
    None: budget_pb2.WINDOW_SPAN_UNSPECIFIED,
    Span.MINUTE: budget_pb2.WINDOW_SPAN_MINUTE,
    Span.HOUR: budget_pb2.WINDOW_SPAN_HOUR,
    Span.DAY: budget_pb2.WINDOW_SPAN_DAY,
    Span.MONTH: budget_pb2.WINDOW_SPAN_MONTH,
}
SPAN_OF = {number: span for span, number in SPANS.items() if span is not None}
A_SPAN = "a minute, an hour, a day or a month"
"""What the span of a window must be."""
SETTABLE = {
    "limit": "limit",
    "window_limits": "windows",
    "model_limits": "model_limits",
    "soft_limits": "soft_limits",
    "name": "name",
    "labels": "labels",
}
"""What can be changed of a customer, and what it is called in `Customer`."""


def customer(tenant: str, asked: budget_pb2.Account, offered: Offered) -> Customer:
    """Read a customer that is to be made."""
    parent = asked.parent_id if asked.parent_id != tenant else ""
    with FieldChecks() as check:
        id = check(requests.account_id, asked.account_id, tenant, "account.account_id")
        new = check(described, asked, offered)
    return replace(new, tenant=tenant, id=id, parent=parent)


def changed(said: Customer, paths: Iterable[str], before: Customer) -> Customer:
    """Return a customer with what is new of it: the fields of some paths, as is said of them."""
    return replace(before, **{SETTABLE[path]: getattr(said, SETTABLE[path]) for path in paths})


def described(asked: budget_pb2.Account, offered: Offered) -> Customer:
    """Read what is said of a customer, whichever it is."""
    windows: dict[Span, Limit] = {}
    with FieldChecks() as check:
        if len(asked.name) > MAX_ACCOUNT_NAME:
            check.wrong("account.name", f"may have {MAX_ACCOUNT_NAME} characters, not {len(asked.name)}")
        for place, one in enumerate(asked.window_limits):
            check(_add_window, windows, one, f"account.window_limits[{place}]")
        labels = check(requests.labels, asked.labels, "account.labels")
        limit = check(requests.budget, asked.limit, "account.limit")
        of_models = check(model_limits, asked.model_limits, "account.model_limits", offered)
        soft = check(soft_limits, asked.soft_limits, "account.soft_limits", offered)
    return Customer(
        "",
        "",
        "",
        name=asked.name,
        labels=labels,
        limit=limit,
        windows=windows,
        model_limits=of_models,
        soft_limits=soft,
    )


def _add_window(windows: dict[Span, Limit], asked: budget_pb2.WindowLimit, field: str) -> None:
    with FieldChecks() as check:
        span = check(window_span, asked.span, f"{field}.span")
        limit = check(requests.budget, asked.limit, f"{field}.limit")
        if span in windows:
            check.wrong(f"{field}.span", f"there are two of a {span}")
        if limit == Limit():
            check.wrong(f"{field}.limit", "limits nothing: leave it out")
        if check.passed and span is Span.MINUTE and (limit.nano_usd, limit.cpu_ms) != (None, None):
            check.wrong(f"{field}.limit", "of a minute, only tokens and calls can be limited")
    windows[span] = limit


def model_limits(asked: Sequence[budget_pb2.ModelLimit], field: str, offered: Offered) -> tuple[ModelLimit, ...]:
    """Read limits on models. They are returned in the order of what they are on."""
    found = []
    with FieldChecks() as check:
        check(_term, checks.check_count, field, len(asked))
        for place, one in enumerate(asked[: checks.MAX_PATTERNS]):
            here = f"{field}[{place}]"
            check(_term, checks.check_model, f"{here}.model", one.model, offered)
            span = check(_span_if_any, one.span, f"{here}.span")
            found.append(ModelLimit(Scope(span, one.model), check(requests.budget, one.limit, f"{here}.limit")))
    _term(checks.check_model_limits, field, found, offered)
    return tuple(sorted(found, key=lambda one: one.scope.place))


def written_model_limits(limits: Iterable[ModelLimit]) -> Iterator[budget_pb2.ModelLimit]:
    """Write limits on models."""
    for one in limits:
        span, model = one.scope.span, one.scope.model
        yield budget_pb2.ModelLimit(model=model, span=SPANS[span], limit=responses.budget(one.limit))


def soft_limits(asked: Sequence[budget_pb2.SoftLimit], field: str, offered: Offered) -> tuple[SoftLimit, ...]:
    """Read soft limits. They are returned in the order of what they are on."""
    found = []
    with FieldChecks() as check:
        check(_term, checks.check_count, field, len(asked))
        for place, one in enumerate(asked[: checks.MAX_PATTERNS]):
            here = f"{field}[{place}]"
            if one.model:
                check(_term, checks.check_model, f"{here}.model", one.model, offered)
            scope = Scope(check(_span_if_any, one.span, f"{here}.span"), one.model)
            if one.WhichOneof("at") == "percent":
                check(_term, checks.check_percent, f"{here}.percent", one.percent)
                found.append(SoftLimit(scope, one.percent))
            else:
                found.append(SoftLimit(scope, amount=check(requests.budget, one.amount, f"{here}.amount")))
    _term(checks.check_soft_limits, field, found, offered)
    return tuple(sorted(found, key=lambda one: one.scope.place))


def written_soft_limits(limits: Iterable[SoftLimit]) -> Iterator[budget_pb2.SoftLimit]:
    """Write soft limits."""
    for one in limits:
        message = budget_pb2.SoftLimit(model=one.scope.model, span=SPANS[one.scope.span])
        if one.percent is None:
            message.amount.CopyFrom(responses.budget(one.amount))
        else:
            message.percent = one.percent
        yield message


def _term(check: Callable[P, None], *args: P.args, **named: P.kwargs) -> None:
    """Check what may be said of a tenant or a customer, whose field is named as in the request."""
    try:
        check(*args, **named)
    except WrongTerm as error:
        more = [Violation(one.field, str(one)) for one in error.more]
        raise InvalidField(error.field, str(error), more=more) from None


def window_span(value: int, field: str) -> Span:
    """Read the span of a window."""
    span = SPAN_OF.get(budget_pb2.WindowSpan.ValueType(value))
    if span is None:
        raise InvalidField(field, f"must be {A_SPAN}, not {value}")
    return span


def _span_if_any(value: int, field: str) -> Span | None:
    return window_span(value, field) if value else None


def account(statement: Statement, customer: Customer | None) -> budget_pb2.Account:
    """Write an account. Of a customer's there is more to say."""
    balance = statement.balance
    message = budget_pb2.Account(
        account_id=names.public(balance.account),
        parent_id=names.public(statement.parent or ""),
        closed=statement.closed,
        limit=responses.budget(balance.limit),
        posted=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        carved=responses.amounts(balance.carved),
        overrun=responses.amounts(balance.overrun),
        left=responses.allowance(statement.left),
        kind=budget_pb2.ACCOUNT_KIND_TENANT if statement.parent is None else budget_pb2.ACCOUNT_KIND_WORK,
    )
    if customer is not None:
        limits = [
            budget_pb2.WindowLimit(span=SPANS[span], limit=responses.budget(customer.windows[span]))
            for span in Span
            if span in customer.windows
        ]
        described = budget_pb2.Account(
            kind=budget_pb2.ACCOUNT_KIND_CUSTOMER,
            name=customer.name,
            labels=customer.labels,
            window_limits=limits,
            model_limits=written_model_limits(customer.model_limits),
            soft_limits=written_soft_limits(customer.soft_limits),
            create_time=responses.time(customer.created_at),
        )
        message.MergeFrom(described)
    return message


def window(value: Window) -> budget_pb2.BudgetWindow:
    """Write an account's window."""
    balance = value.balance
    return budget_pb2.BudgetWindow(
        span=SPANS[value.span],
        label=value.label,
        start_time=responses.time(value.begins) if value.span is not None else None,
        end_time=responses.time(value.ends) if value.span is not None else None,
        limit=responses.budget(balance.limit),
        posted=responses.amounts(balance.posted),
        pending=responses.amounts(balance.pending),
        overrun=responses.amounts(balance.overrun),
        left=responses.allowance(balance.left),
        account_id=names.public(value.account),
        model=value.model,
    )
