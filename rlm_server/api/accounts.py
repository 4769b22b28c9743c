"""Reads and writes accounts: a customer as a request describes it, and any account as an answer shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rlm.v1 import budget_pb2

from rlm_server.api import requests, responses
from rlm_server.api.errors import InvalidField
from rlm_server.api.field_checks import FieldChecks
from rlm_server.ledger import Limit, ModelLimit, Scope, SoftLimit, Span, Statement, Window, names
from rlm_server.ledger.customers import Customer
from rlm_server.tenants import checks
from rlm_server.tenants.checks import Offered, WrongTerm

MAX_ACCOUNT_NAME = 200
"""Characters of the name of an account."""

SPANS = {
    None: budget_pb2.WINDOW_SPAN_UNSPECIFIED,
    Span.MINUTE: budget_pb2.WINDOW_SPAN_MINUTE,
    Span.HOUR: budget_pb2.WINDOW_SPAN_HOUR,
    Span.DAY: budget_pb2.WINDOW_SPAN_DAY,
    Span.MONTH: budget_pb2.WINDOW_SPAN_MONTH,
}
_SPANS = {number: span for span, number in SPANS.items()}
_SETTABLE = {
    "limit": "limit",
    "window_limits": "windows",
    "model_limits": "model_limits",
    "soft_limits": "soft_limits",
    "name": "name",
    "labels": "labels",
}


def customer(tenant: str, asked: budget_pb2.Account) -> Customer:
    """Read a customer that is to be made."""
    parent = asked.parent_id if asked.parent_id != tenant else ""
    with FieldChecks() as check:
        id = check(requests.account_id, asked.account_id, tenant, "account.account_id")
        new = check(_described, Customer(tenant, id, parent), asked)
    return new  # noqa: RET504 - the checks end before


def check_described(asked: budget_pb2.Account) -> None:
    """Refuse what may not be said of any customer."""
    _described(Customer("", "", ""), asked)


def changed(before: Customer, asked: budget_pb2.Account, paths: Iterable[str]) -> Customer:
    """Return a customer with what is new of it."""
    new = _described(before, asked)
    return replace(before, **{_SETTABLE[path]: getattr(new, _SETTABLE[path]) for path in paths})


def check_paths(paths: Iterable[str]) -> None:
    """Refuse to change what cannot be changed."""
    for path in paths:
        if path not in _SETTABLE:
            raise InvalidField("update_mask", f"may have {', '.join(_SETTABLE)}, not {path[:100]!r}")


def _described(customer: Customer, asked: budget_pb2.Account) -> Customer:
    windows: dict[Span, Limit] = {}
    with FieldChecks() as check:
        if len(asked.name) > MAX_ACCOUNT_NAME:
            check.wrong("account.name", f"may have {MAX_ACCOUNT_NAME} characters, not {len(asked.name)}")
        for place, one in enumerate(asked.window_limits):
            check(_add_window, windows, one, f"account.window_limits[{place}]")
        labels = check(requests.labels, asked.labels, "account.labels")
        limit = check(requests.budget, asked.limit, "account.limit")
        of_models = check(model_limits, asked.model_limits, "account.model_limits")
        soft = check(soft_limits, asked.soft_limits, "account.soft_limits")
    return replace(
        customer,
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


def model_limits(asked: Iterable[budget_pb2.ModelLimit], field: str) -> tuple[ModelLimit, ...]:
    """Read limits on models, in their order. Whether they may be is left to `check_limits`."""
    found = []
    for place, one in enumerate(asked):
        here = f"{field}[{place}]"
        span = window_span(one.span, f"{here}.span") if one.span else None
        found.append(ModelLimit(Scope(span, one.model), requests.budget(one.limit, f"{here}.limit")))
    return tuple(sorted(found, key=lambda one: one.scope.place))


def written_model_limits(limits: Iterable[ModelLimit]) -> Iterator[budget_pb2.ModelLimit]:
    """Write limits on models."""
    for one in limits:
        span, model = one.scope.span, one.scope.model
        yield budget_pb2.ModelLimit(model=model, span=SPANS[span], limit=responses.budget(one.limit))


def soft_limits(asked: Iterable[budget_pb2.SoftLimit], field: str) -> tuple[SoftLimit, ...]:
    """Read soft limits, in the order of what they are on. Whether they may be is left to `check_limits`."""
    found = []
    for place, one in enumerate(asked):
        here = f"{field}[{place}]"
        scope = Scope(window_span(one.span, f"{here}.span") if one.span else None, one.model)
        if one.WhichOneof("at") == "percent":
            found.append(SoftLimit(scope, one.percent))
        else:
            found.append(SoftLimit(scope, amount=requests.budget(one.amount, f"{here}.amount")))
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


def check_limits(customer: Customer, offered: Offered) -> None:
    """Refuse limits on models and soft limits that cannot be, or on a model that is not offered."""
    try:
        checks.check_model_limits("account.model_limits", customer.model_limits, offered)
        checks.check_soft_limits("account.soft_limits", customer.soft_limits, offered)
    except WrongTerm as error:
        raise InvalidField(error.field, str(error)) from None


def window_span(value: int, field: str) -> Span:
    """Read the span of a window."""
    span = _SPANS.get(budget_pb2.WindowSpan.ValueType(value))
    if span is None:
        raise InvalidField(field, f"must be a minute, an hour, a day or a month, not {value}")
    return span


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
