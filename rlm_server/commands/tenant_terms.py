"""What `rlm-server tenant` is told of a tenant, as NAME=VALUE, and how it is shown again in the same form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from rlm_server.ledger import NANO, UNITS, Limit, Scope, SoftLimit, Span
from rlm_server.tenants.checks import Offered, WrongTerm, check_labels, check_terms, limit_bounds
from rlm_server.tenants.tenants import Tenant
from rlm_server.tenants.terms import NO_LIMIT, OwnTerms, Terms

LISTS = {"models": "allowed_models", "images": "allowed_images", "fallbacks": "allowed_fallbacks"}
"""The lists that may be said of a tenant, and what the protocol calls them."""
_UNITS = {"usd" if unit == "nano_usd" else unit: unit for unit in UNITS}
BUDGETS: Mapping[str, tuple[Span | None, str]] = {
    f"{prefix}budget_{name}": (span, unit)
    for prefix, span in (("", None), *((f"{span}_", span) for span in Span))
    for name, unit in _UNITS.items()
}
"""The budgets that may be said of a tenant: of which windows, and in which unit."""

SOFT = "soft_limits"
"""What soft limits are said as, joined by commas."""
REDACTION = "redact_contents"
"""Whether contents of runs are redacted: true or false."""
_TRUTHS = {"true": True, "false": False}
OF_MODEL = "model."
"""What the name of a budget for the calls of some models begins with."""


class WrongAssignment(ValueError):
    """What is said of a tenant may not be; the message names it."""


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of a tenant: its terms and its labels."""

    terms: OwnTerms = field(default_factory=OwnTerms)
    labels: Mapping[str, str] = field(default_factory=dict)


def assigned(said: Said, assignments: tuple[str, ...], terms: Terms) -> Said:
    """Return what is said after some NAME=VALUE; without a VALUE it is as configured again.

    Raises:
        WrongAssignment: one of them is wrong.
    """
    try:
        for assignment in assignments:
            said = _one(said, assignment, terms)
        check_labels(said.labels)
        check_terms(said.terms, terms, Offered())
    except WrongTerm as error:
        wrong = (f"{_told(one.field)}: {one}" for one in (error, *error.more))
        raise WrongAssignment("; ".join(wrong)) from None
    return said


def _one(said: Said, assignment: str, terms: Terms) -> Said:
    own = said.terms
    name, equals, value = assignment.partition("=")
    if not equals:
        raise WrongTerm(name[:60], "needs a value: NAME=VALUE, or NAME= to have it as configured")
    if name.startswith("label."):
        label = name.removeprefix("label.")
        labels = {one: text for one, text in said.labels.items() if one != label}
        return replace(said, labels={**labels, label: value} if value else labels)
    if name in LISTS:
        named: dict[str, Any] = {name: tuple(filter(None, map(str.strip, value.split(","))))}
        return replace(said, terms=replace(own, **named))
    if name == SOFT:
        return replace(said, terms=replace(own, soft_limits=tuple(map(_soft_limit, filter(None, value.split(","))))))
    if name == "weight":
        return replace(said, terms=replace(own, weight=_number(name, value) if value else None))
    if name == REDACTION:
        return replace(said, terms=replace(own, redact_contents=_truth(name, value) if value else None))
    if name.startswith(OF_MODEL):
        return replace(said, terms=_with_model_budget(own, name, value))
    if name in BUDGETS:
        return replace(said, terms=_with_budget(own, name, value))
    limit_bounds(name, terms)
    others = {one: number for one, number in own.limits.items() if one != name}
    return replace(said, terms=replace(own, limits={**others, name: _number(name, value)} if value else others))


def _with_budget(own: OwnTerms, name: str, value: str) -> OwnTerms:
    span, unit = BUDGETS[name]
    amount = _amount(name, unit, value) if value else None
    return own.with_limit(span, replace(own.limit(span), **{unit: amount}))


def _with_model_budget(own: OwnTerms, name: str, value: str) -> OwnTerms:
    model, _, budget = name.removeprefix(OF_MODEL).rpartition(".")
    if not model or budget not in BUDGETS:
        raise WrongTerm(name[:260], "must be model.NAME.BUDGET, as model.claude-opus*.day_budget_usd")
    span, unit = BUDGETS[budget]
    scope, amount = Scope(span, model), _amount(name, unit, value) if value else None
    before = next((one.limit for one in own.model_limits if one.scope == scope), NO_LIMIT)
    return own.with_model_limit(scope, replace(before, **{unit: amount}))


def _soft_limit(text: str) -> SoftLimit:
    """Read a soft limit: `80%`, `day 50%`, `month 400 usd`, and of some models with `model.PATTERN` before it."""
    words = text.split()
    model = words.pop(0).removeprefix(OF_MODEL) if words and words[0].startswith(OF_MODEL) else ""
    span = Span(words.pop(0)) if words and words[0] in tuple(Span) else None
    scope = Scope(span, model)
    match words:
        case [share] if share.endswith("%") and share[:-1].isdigit():
            return SoftLimit(scope, int(share[:-1]))
        case [amount, unit] if unit in _UNITS:
            return SoftLimit(scope, amount=Limit(**{_UNITS[unit]: _amount(SOFT, _UNITS[unit], amount)}))
    raise WrongTerm(SOFT, f"must be like 80%, day 50%, month 400 usd or model.opus* 90%, not {text.strip()[:80]!r}")


def _written_soft(one: SoftLimit) -> Iterator[str]:
    span = "" if one.scope.span is None else str(one.scope.span)
    head = (f"{OF_MODEL}{one.scope.model}" if one.scope.model else "", span)
    if one.percent is not None:
        yield " ".join(filter(None, (*head, f"{one.percent}%")))
        return
    for unit_name, unit in _UNITS.items():
        for _, amount in _written("", unit, one.amount):
            yield " ".join(filter(None, (*head, amount, unit_name)))


def _amount(name: str, unit: str, value: str) -> int:
    try:
        amount = Decimal(value) * (NANO if unit == "nano_usd" else 1)
        whole = int(amount)
    except (InvalidOperation, ValueError, OverflowError):
        raise WrongTerm(name, f"must be a number, not {value[:50]!r}") from None
    if amount != whole or whole <= 0:
        kind = "an amount above 0, with at most 9 decimals" if unit == "nano_usd" else "a whole number above 0"
        raise WrongTerm(name, f"must be {kind}, not {value[:50]!r}")
    return whole


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise WrongTerm(name, f"must be a number, not {value[:50]!r}") from None


def _truth(name: str, value: str) -> bool:
    if value not in _TRUTHS:
        raise WrongTerm(name, f"must be true or false, not {value[:50]!r}")
    return _TRUTHS[value]


def _told(field_name: str) -> str:
    """The name that an operator gave, of a field of the protocol."""
    names = {protocol: name for name, protocol in LISTS.items()}
    return names.get(field_name, field_name.removeprefix("limits."))


def assignments_of(tenant: Tenant) -> Iterator[tuple[str, str]]:
    """Yield all that a tenant was told itself, as names and values."""
    own = tenant.terms
    for label, text in sorted(tenant.labels.items()):
        yield f"label.{label}", text
    for name in LISTS:
        if getattr(own, name):
            yield name, ",".join(getattr(own, name))
    if own.weight is not None:
        yield "weight", f"{own.weight:g}"
    yield from budgets_of(own)
    yield from model_budgets_of(own)
    if own.soft_limits:
        yield SOFT, ", ".join(text for one in own.soft_limits for text in _written_soft(one))
    if own.redact_contents is not None:
        yield REDACTION, "true" if own.redact_contents else "false"
    for name, number in own.limits.items():
        yield name, f"{number:.15g}"


def budgets_of(own: OwnTerms) -> Iterator[tuple[str, str]]:
    """Yield budgets, as names and values."""
    for name, (span, unit) in BUDGETS.items():
        yield from _written(name, unit, own.limit(span))


def model_budgets_of(own: OwnTerms) -> Iterator[tuple[str, str]]:
    """Yield budgets for the calls of some models, as names and values."""
    for one in own.model_limits:
        for name, (span, unit) in BUDGETS.items():
            if span is one.scope.span:
                yield from _written(f"{OF_MODEL}{one.scope.model}.{name}", unit, one.limit)


def _written(name: str, unit: str, limit: Limit) -> Iterator[tuple[str, str]]:
    amount: int | None = getattr(limit, unit)
    if amount is not None:
        yield name, f"{Decimal(amount) / NANO:f}" if unit == "nano_usd" else str(amount)
