"""On what terms each tenant is served: what it was told itself, else what the configuration says of it, else of all.

This is the one place that knows. It is in memory, and is told of every change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar, cast

from rlm_server.ledger import UNITS, Limit, ModelLimit, Scope, SoftLimit, Span
from rlm_server.tenants.policy import Policy, Weights
from sandbox.limits import Bounds, declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Declared = TypeVar("Declared", bound="DataclassInstance")

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
"""Of a tenant, where it stands in line with others."""
NO_LIMIT = Limit()


@dataclass(frozen=True, slots=True)
class OwnTerms:
    """What is said of one tenant. What is empty, None or not there is as it would be without.

    `models`, `images` and `fallbacks` are names or patterns of those that it may use. `limits` are numbers by the names
    that are declared with `limit`, each in its unit. `budget` is what it may spend in all, `windows` what in every
    minute, hour, day or month, and `model_limits` what with some models. It is told when it has spent `soft_limits`.
    `redact_contents` says whether contents of its runs are left out of what is kept and told of them.
    """

    models: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    weight: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    budget: Limit = NO_LIMIT
    windows: Mapping[Span, Limit] = field(default_factory=dict)
    model_limits: tuple[ModelLimit, ...] = ()
    soft_limits: tuple[SoftLimit, ...] = ()
    redact_contents: bool | None = None

    def limit(self, span: Span | None) -> Limit:
        """What it may spend in every window of a span, or with None in all."""
        return self.budget if span is None else self.windows.get(span, NO_LIMIT)

    def with_limit(self, span: Span | None, limit: Limit) -> OwnTerms:
        """Return these terms with another budget: that of every window of a span, or with None that for all."""
        if span is None:
            return replace(self, budget=limit)
        others = {one: kept for one, kept in self.windows.items() if one is not span}
        return replace(self, windows=others if limit == NO_LIMIT else {**others, span: limit})

    def over(self, below: OwnTerms) -> OwnTerms:
        """Return these terms, and where they say nothing, those below them."""
        return OwnTerms(
            self.models or below.models,
            self.images or below.images,
            self.fallbacks or below.fallbacks,
            below.weight if self.weight is None else self.weight,
            {**below.limits, **self.limits},
            merged(self.budget, below.budget),
            {span: merged(self.limit(span), below.limit(span)) for span in Span},
            tuple({one.scope: one for one in (*below.model_limits, *self.model_limits)}.values()),
            self.soft_limits or below.soft_limits,
            below.redact_contents if self.redact_contents is None else self.redact_contents,
        )

    @property
    def ledger_limits(self) -> dict[Scope, Limit]:
        """What it may spend in windows, and with some models, as the ledger is told."""
        windows = {Scope(span): limit for span, limit in self.windows.items() if limit != NO_LIMIT}
        return windows | {one.scope: one.limit for one in self.model_limits}

    def with_model_limit(self, scope: Scope, limit: Limit) -> OwnTerms:
        """Return these terms with another limit on the calls of some models; an empty one lifts it."""
        others = [one for one in self.model_limits if one.scope != scope]
        new = [] if limit == NO_LIMIT else [ModelLimit(scope, limit)]
        return replace(self, model_limits=tuple(sorted([*others, *new], key=lambda one: one.scope.place)))


def merged(limit: Limit, below: Limit) -> Limit:
    """Return a limit, and in each unit in which it is none, the one below."""
    units = {unit: getattr(limit, unit) for unit in UNITS}
    return Limit(**{unit: getattr(below, unit) if most is None else most for unit, most in units.items()})


class Source(StrEnum):
    """Where the value of a limit comes from."""

    SERVER = "server"
    CONFIGURATION = "configuration"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class InForce:
    """A limit that is in force for a tenant."""

    name: str
    value: float
    bounds: Bounds
    source: Source


class Terms:
    """The terms of every tenant. `usual` are the limits of all, `for_all` and `configured` what the settings say.

    `usual` has an instance of each class that declares limits which a tenant may have of its own.
    """

    def __init__(
        self,
        usual: Sequence[DataclassInstance],
        *,
        for_all: OwnTerms | None = None,
        configured: Mapping[str, OwnTerms] | None = None,
    ) -> None:
        self._usual = {type(one): one for one in usual}
        self._for_all, self._configured = for_all or OwnTerms(), dict(configured or {})
        self._told: dict[str, OwnTerms] = {}
        self._limits: dict[tuple[type, str], DataclassInstance] = {}
        self._policies: dict[str, Policy] = {}

    @property
    def declared(self) -> dict[str, Bounds]:
        """Every limit that a tenant may have of its own, by name and in order."""
        return {name: bounds for usual in self._usual.values() for name, bounds in declared(usual).items()}

    def is_whole(self, name: str) -> bool:
        """Whether a limit of this name is a whole number."""
        return any(isinstance(getattr(usual, name, None), int) for usual in self._usual.values())

    def near(self, name: str) -> list[str]:
        """The limits whose names are close to this."""
        return difflib.get_close_matches(name, list(self.declared), n=1, cutoff=0.75)

    def tell(self, tenant: str, own: OwnTerms | None) -> None:
        """Say what a tenant was told itself; None where it has nothing more to say."""
        if own is None or own == OwnTerms():
            self._told.pop(tenant, None)
        else:
            self._told[tenant] = own
        self._policies.pop(tenant, None)
        for kind in self._usual:
            self._limits.pop((kind, tenant), None)

    def of(self, tenant: str) -> OwnTerms:
        """Return a tenant's terms as they are in force. A unit that no budget limits is None."""
        return self.with_own(self._told.get(tenant, OwnTerms()), tenant)

    def with_own(self, own: OwnTerms, tenant: str) -> OwnTerms:
        """Return the terms that would be in force for a tenant, were it told these."""
        return own.over(self._configured.get(tenant, OwnTerms())).over(self._for_all)

    def policy(self, tenant: str) -> Policy:
        """Return a tenant's policy."""
        known = self._policies.get(tenant)
        if known is None:
            own = self.of(tenant)
            known = Policy(
                1.0 if own.weight is None else own.weight,
                None if "*" in own.fallbacks else frozenset(own.fallbacks),
                own.models,
                own.images,
            )
            if self.says_of(tenant):
                self._policies[tenant] = known
        return known

    def redacts_contents(self, tenant: str) -> bool:
        """Whether contents of a tenant's runs are redacted now. Every event asks."""
        own, configured = self._told.get(tenant), self._configured.get(tenant)
        said = (one.redact_contents for one in (own, configured, self._for_all) if one is not None)
        return next((one for one in said if one is not None), False)

    def limits(self, tenant: str, kind: type[Declared]) -> Declared:
        """Return a tenant's limits of one of the classes that declare them."""
        usual = cast("Declared", self._usual[kind])
        if not self.says_of(tenant):
            return usual
        known = self._limits.get((kind, tenant))
        if known is None:
            own = self.of(tenant).limits
            mine = {
                name: int(own[name]) if self.is_whole(name) else own[name] for name in declared(kind) if name in own
            }
            known = self._limits[kind, tenant] = replace(usual, **mine)
        return cast("Declared", known)

    def in_force(self, tenant: str) -> list[InForce]:
        """Return every limit of a tenant, in order, and where it comes from."""
        told = self._told.get(tenant, OwnTerms()).limits
        configured = self._configured.get(tenant, OwnTerms()).limits
        found = []
        for kind in self._usual:
            values = self.limits(tenant, kind)
            for name, bounds in declared(kind).items():
                source = (
                    Source.TENANT if name in told else Source.CONFIGURATION if name in configured else Source.SERVER
                )
                found.append(InForce(name, getattr(values, name), bounds, source))
        return found

    def says_of(self, tenant: str) -> bool:
        """Whether something is said of a tenant."""
        return tenant in self._told or tenant in self._configured

    @property
    def named(self) -> set[str]:
        """The tenants of which something is said."""
        return self._told.keys() | self._configured.keys()

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Every tenant's policy, always as it is now."""
        return _Policies(self)

    @property
    def weights(self) -> Mapping[str, float]:
        """Every tenant's weight, always as it is now."""
        return Weights(self.policies)


class _Policies(Mapping[str, Policy]):
    """A view of terms: the policies of those of which something is said."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def __getitem__(self, tenant: str) -> Policy:
        if not self._terms.says_of(tenant):
            raise KeyError(tenant)
        return self._terms.policy(tenant)

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms.named)

    def __len__(self) -> int:
        return len(self._terms.named)
