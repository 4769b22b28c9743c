"""What may be said of a tenant or a key. A value that may not be is named, with what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rlm_server.database.labels import MAX_LABEL, MAX_LABELS
from rlm_server.ledger import MAX_BUDGET, UNITS, Limit, ModelLimit, Scope, SoftLimit, Span
from rlm_server.tenants.policy import is_pattern
from rlm_server.tenants.tenants import NAME
from rlm_server.tenants.terms import LEAST_WEIGHT, MOST_WEIGHT, NO_LIMIT, OwnTerms, Terms
from sandbox.limits import Bounds

MAX_PATTERNS = 64
"""Names or patterns in one list of a tenant's."""
MAX_PATTERN = 200
"""Characters of a name or pattern of models or images."""


class WrongTerm(ValueError):
    """Something that is said of a tenant or a key may not be. `field` names it. `more` may not be as well."""

    def __init__(self, field: str, message: str, more: Sequence[WrongTerm] = ()) -> None:
        super().__init__(message)
        self.field = field
        self.more = tuple(more)


@dataclass(frozen=True, slots=True)
class Offered:
    """The models and images that there are, where that is known. Names must be of these; patterns need not."""

    models: Collection[str] | None = None
    images: Collection[str] | None = None


def check_name(name: str) -> None:
    """Refuse what cannot be a tenant's name.

    Raises:
        WrongTerm: it cannot.
    """
    if not NAME.fullmatch(name):
        raise WrongTerm(
            "tenant_id",
            f"must be 1 to 63 lower-case letters, digits and hyphens, the first a letter, not {name[:70]!r}",
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that are too many or too long.

    Raises:
        WrongTerm: they are.
    """
    if len(labels) > MAX_LABELS:
        raise WrongTerm("labels", f"may be {MAX_LABELS}, not {len(labels)}")
    _check_all(partial(_check_label, name, value) for name, value in labels.items())


def _check_label(name: str, value: str) -> None:
    if not 1 <= len(name) <= MAX_LABEL:
        raise WrongTerm("labels", f"a name must have 1 to {MAX_LABEL} characters, not {len(name)}")
    if len(value) > MAX_LABEL:
        raise WrongTerm(f"labels.{name}", f"may have {MAX_LABEL} characters, not {len(value)}")


def check_terms(own: OwnTerms, terms: Terms, offered: Offered) -> None:
    """Refuse terms that a tenant may not have.

    Raises:
        WrongTerm: some of them are wrong.
    """
    checks: list[Callable[[], None]] = [
        partial(_check_names, "allowed_models", own.models, offered.models),
        partial(_check_names, "allowed_images", own.images, offered.images),
        partial(_check_names, "allowed_fallbacks", own.fallbacks, offered.models),
        partial(_check_weight, own.weight),
        *(partial(_check_limit, name, value, terms) for name, value in own.limits.items()),
        partial(_check_budget, "budget", own.budget),
        *(partial(_check_budget, f"{span}_budget", limit) for span, limit in own.windows.items()),
        *(partial(_check_units, f"{span}_budget", Scope(span), limit) for span, limit in own.windows.items()),
        partial(check_model_limits, "model_limits", own.model_limits, offered),
        partial(check_soft_limits, "soft_limits", own.soft_limits, offered),
    ]
    _check_all(checks)


def _check_all(checks: Iterable[Callable[[], None]]) -> None:
    """Make some checks and tell of all that is wrong."""
    wrong: list[WrongTerm] = []
    for check in checks:
        try:
            check()
        except WrongTerm as error:
            wrong += [error, *error.more]
    if wrong:
        first, *more = wrong
        raise WrongTerm(first.field, str(first), more)


def _check_weight(weight: float | None) -> None:
    if weight is not None and not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise WrongTerm("weight", f"must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight:g}")


def check_model_limits(field: str, limits: Sequence[ModelLimit], offered: Offered) -> None:
    """Refuse limits on models that an account may not have.

    Raises:
        WrongTerm: some of them are wrong.
    """
    check_count(field, len(limits))
    scopes = [one.scope for one in limits]
    _check_all(
        partial(_check_model_limit, f"{field}[{place}]", one, scopes[:place], offered)
        for place, one in enumerate(limits)
    )


def _check_model_limit(field: str, one: ModelLimit, before: Sequence[Scope], offered: Offered) -> None:
    check_model(f"{field}.model", one.scope.model, offered)
    if one.scope in before:
        raise WrongTerm(field, f"there are two of {one.scope.model!r} {_span(one.scope)}")
    _check_budget(f"{field}.limit", one.limit)
    _check_units(f"{field}.limit", one.scope, one.limit)
    if one.limit == NO_LIMIT:
        raise WrongTerm(f"{field}.limit", "must not be empty")


def check_soft_limits(field: str, limits: Sequence[SoftLimit], offered: Offered) -> None:
    """Refuse soft limits that an account may not have.

    Raises:
        WrongTerm: some of them are wrong.
    """
    check_count(field, len(limits))
    _check_all(
        partial(_check_soft_limit, f"{field}[{place}]", one, limits[:place], offered)
        for place, one in enumerate(limits)
    )


def _check_soft_limit(field: str, one: SoftLimit, before: Sequence[SoftLimit], offered: Offered) -> None:
    if one in before:
        raise WrongTerm(field, "is there twice")
    if one.scope.model:
        check_model(f"{field}.model", one.scope.model, offered)
    if one.scope.span is Span.MINUTE:
        raise WrongTerm(f"{field}.span", "must be an hour, a day, a month or none: a minute is a pace")
    if one.percent is not None:
        check_percent(f"{field}.percent", one.percent)
    _check_budget(f"{field}.amount", one.amount)
    _check_units(f"{field}.amount", one.scope, one.amount)
    if one.percent is None and one.amount == NO_LIMIT:
        raise WrongTerm(f"{field}.amount", "must not be empty, or there must be percent")


def check_count(field: str, count: int) -> None:
    """Refuse more names, patterns or limits than one list may have.

    Raises:
        WrongTerm: there are more.
    """
    if count > MAX_PATTERNS:
        raise WrongTerm(field, f"may be {MAX_PATTERNS}, not {count}")


def check_model(field: str, name: str, offered: Offered) -> None:
    """Refuse a name or a pattern of models that cannot be.

    Raises:
        WrongTerm: it cannot.
    """
    _check_names(field, (name,), offered.models)


def check_percent(field: str, value: int) -> None:
    """Refuse a share of a limit that cannot be.

    Raises:
        WrongTerm: it cannot.
    """
    if not 1 <= value <= 100:
        raise WrongTerm(field, f"must be from 1 to 100, not {value}")


def _check_units(field: str, scope: Scope, limit: Limit) -> None:
    """Refuse units in which a limit cannot be: a minute is for a pace, and turns have no model."""
    if scope.span is Span.MINUTE and (limit.nano_usd, limit.cpu_ms) != (None, None):
        raise WrongTerm(field, "a minute may be limited in tokens and calls alone")
    if scope.model and limit.cpu_ms is not None:
        raise WrongTerm(field, "models may be limited in money, tokens and calls, not in processor time")


def _span(scope: Scope) -> str:
    return "in all" if scope.span is None else f"in every {scope.span}"


def _check_names(field: str, names: Sequence[str], offered: Collection[str] | None) -> None:
    check_count(field, len(names))
    for name in names:
        if not 1 <= len(name) <= MAX_PATTERN:
            raise WrongTerm(field, f"each must have 1 to {MAX_PATTERN} characters, not {len(name)}")
        if offered is not None and not is_pattern(name) and name not in offered:
            raise WrongTerm(field, f"{name!r} is not offered here; there are: {', '.join(sorted(offered))}")


def limit_bounds(name: str, terms: Terms) -> Bounds:
    """Return what a limit may be.

    Raises:
        WrongTerm: there is none of this name.
    """
    bounds = terms.declared.get(name)
    if bounds is None:
        near = ", ".join(terms.near(name))
        raise WrongTerm(f"limits.{name[:60]}", "there is no such limit" + (f"; is it {near}?" if near else ""))
    return bounds


def _check_limit(name: str, value: float, terms: Terms) -> None:
    bounds = limit_bounds(name, terms)
    whole = terms.is_whole(name)
    if not bounds.least <= value <= bounds.most or (whole and not float(value).is_integer()):
        most = "" if bounds.most == math.inf else f" to {bounds.most:.15g}"
        kind = "a whole number " if whole else ""
        raise WrongTerm(
            f"limits.{name}", f"must be {kind}from {bounds.least:.15g}{most} {bounds.unit}, not {value:.15g}"
        )


def _check_budget(field: str, limit: Limit) -> None:
    for unit in UNITS:
        amount = getattr(limit, unit)
        if amount is not None and not 0 < amount <= MAX_BUDGET:
            raise WrongTerm(f"{field}.{unit}", f"must be from 1 to {MAX_BUDGET}, not {amount}")
