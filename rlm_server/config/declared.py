"""How settings say what they are: units beside types, and fields that follow from what is declared elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, Field, SecretStr, create_model

from rlm_server.broker.providers.registry import with_keys
from sandbox.limits import declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Model = TypeVar("Model", bound=BaseModel)
Declared = TypeVar("Declared", bound="DataclassInstance")

Fields = Mapping[str, tuple[Any, Any]]
"""Fields as `pydantic.create_model` takes them: a type and a default."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Beside a type: what a number counts, as a word in the plural."""

    name: str


@dataclass(frozen=True, slots=True)
class DefaultWords:
    """Beside a type: what to say of a default that is no plain value."""

    words: str


@dataclass(frozen=True, slots=True)
class OtherVariable:
    """Beside a type: a variable that gives the setting where nothing of the server's own does."""

    name: str


def extended(*more: Fields) -> Callable[[type[Model]], type[Model]]:
    """Give a model more fields, which follow those it has."""

    def extend(model: type[Model]) -> type[Model]:
        fields: dict[str, Any] = {name: field for fields in more for name, field in fields.items()}
        return create_model(
            model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields
        )

    return extend


def limit_fields(limits: type[DataclassInstance]) -> Fields:
    """Return a field for each limit that a dataclass declares, with its default, bounds, unit and doc."""
    default = limits()
    return {name: (kind, Field(getattr(default, name), description=doc)) for name, kind, doc in _limits(limits)}


def own_limit_fields(limits: type[DataclassInstance], otherwise: str) -> Fields:
    """Return the same fields for somebody's own: each may be left out, which means what `otherwise` says."""
    return {
        name: (Annotated[kind | None, DefaultWords(otherwise)], Field(None, description=doc))
        for name, kind, doc in _limits(limits)
    }


def _limits(limits: type[DataclassInstance]) -> list[tuple[str, Any, str]]:
    types = get_type_hints(limits)
    rows = []
    for name, bounds in declared(limits).items():
        most = None if bounds.most == math.inf else bounds.most
        kind = Annotated[types[name], Field(ge=bounds.least, le=most), Unit(bounds.unit)]  # type: ignore[valid-type]
        rows.append((name, kind, bounds.doc))
    return rows


def key_fields() -> Fields:
    """Return a field for the key of each provider that has one."""
    return {
        spec.key_setting: (
            Annotated[SecretStr, OtherVariable(spec.key_variable)],
            Field(SecretStr(""), description=f"The key of {spec.name}. Its models are offered where there is one."),
        )
        for spec in with_keys()
    }


def overlaid(limits: Declared, settings: BaseModel) -> Declared:
    """Return limits, with those in their place that settings say of them."""
    values = {name: getattr(settings, name, None) for name in declared(limits)}
    return replace(limits, **{name: value for name, value in values.items() if value is not None})
