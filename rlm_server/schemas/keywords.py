"""The keywords of JSON Schema 2020-12, of which each step is counted.

They are those of `jsonschema`, but for what takes more time there than it says, or answers otherwise than the standard:
patterns are RE2's, equal items are found by hashing, and multiples are those of decimal fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from fractions import Fraction
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import create

from rlm_server.schemas.schema import DIALECT
from rlm_server.schemas.work import ERROR_STEPS, Work

_MOST_NAMED = 5
"""Keys, or values of an `enum`, that a message names."""

_EACH_ITEM = frozenset({"items", "contains", "propertyNames", "uniqueItems"})
"""Keywords that go over all items of a value, or all keys."""
_DEEP = frozenset({"enum", "const", "dependentRequired"})
"""Keywords whose own values are gone over wholly."""

Errors = Iterator[ValidationError]
Keyword = Callable[[Any, Any, Any, Mapping[str, Any]], Errors | None]

_work: ContextVar[Work] = ContextVar("what counts the steps of the validator at work")


def errors(schema: Any, resolver: Any, value: Any, work: Work) -> Errors:
    """Yield what of a value is wrong, as `jsonschema` has it. All steps are counted in `work`, one value at a time."""
    _work.set(work)
    yield from _validator_class()(schema, _resolver=resolver).iter_errors(value)


@cache
def _validator_class() -> Any:
    """Return a class of validators, as `jsonschema` makes them: that takes some milliseconds."""
    keywords: dict[str, Keyword] = {
        **Draft202012Validator.VALIDATORS,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "enum": _enum,
        "items": _items,
        "uniqueItems": _unique_items,
        "multipleOf": _multiple_of,
    }
    steps = {name: _counted(name, keyword) for name, keyword in keywords.items()}
    return create({"$id": DIALECT}, steps, type_checker=Draft202012Validator.TYPE_CHECKER)


def _counted(name: str, keyword: Keyword) -> Keyword:
    """Return a keyword whose steps are counted before they are taken."""
    each, deep = name in _EACH_ITEM, name in _DEEP

    def check(validator: Any, value: Any, instance: Any, schema: Mapping[str, Any]) -> Errors:
        work = _work.get()
        steps = work.weight(value) if deep else len(value) if isinstance(value, list) else 0
        work.spend(1 + steps + (len(instance) if each and isinstance(instance, list | dict) else 0))
        for error in keyword(validator, value, instance, schema) or ():
            work.spend(ERROR_STEPS)
            yield error

    return check


def _pattern(validator: Any, pattern: str, instance: Any, schema: Mapping[str, Any]) -> Errors:  # noqa: ARG001
    if isinstance(instance, str) and not _work.get().matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any,
    patterns: Mapping[str, Any],
    instance: Any,
    schema: Mapping[str, Any],  # noqa: ARG001
) -> Errors:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if _work.get().matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, subschema: Any, instance: Any, schema: Mapping[str, Any]) -> Errors:
    if not isinstance(instance, dict):
        return
    named, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    _work.get().spend(len(instance))
    extra = [key for key in instance if key not in named and not any(_work.get().matches(one, key) for one in patterns)]
    if subschema is False and extra:
        yield ValidationError(f"it may have no key {_named([key[:60] for key in extra])}")
    elif subschema is not False:
        for key in extra:
            yield from validator.descend(instance[key], subschema, path=key)


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: Mapping[str, Any]) -> Errors:  # noqa: ARG001
    if not wanted or not isinstance(instance, list):
        return
    seen: dict[Any, int] = {}
    for place, item in enumerate(instance):
        before = seen.setdefault(_identity(item), place)
        if before != place:
            yield ValidationError(f"items {before} and {place} are equal")
            return


def _identity(value: Any) -> Any:
    """Return what is equal for equal values of JSON alone: 1 is 1.0, and true is neither."""
    _work.get().spend(1)
    if isinstance(value, dict):
        return frozenset((key, _identity(one)) for key, one in value.items())
    if isinstance(value, list):
        return tuple(map(_identity, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # In words, whose hashes nobody can foresee: those of numbers can be made all the same.
    return type(value), value if isinstance(value, str) else repr(value)


def _named(several: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, several[:_MOST_NAMED]))
    return f"{shown} and {len(several) - _MOST_NAMED} more" if len(several) > _MOST_NAMED else shown


def _enum(validator: Any, values: Sequence[Any], instance: Any, schema: Mapping[str, Any]) -> Errors:
    for _ in Draft202012Validator.VALIDATORS["enum"](validator, values, instance, schema):
        yield ValidationError(f"{instance!r} is not one of {_named(values)}")


def _items(validator: Any, subschema: Any, instance: Any, schema: Mapping[str, Any]) -> Errors:
    most = len(schema.get("prefixItems", ()))
    if subschema is not False:
        yield from Draft202012Validator.VALIDATORS["items"](validator, subschema, instance, schema)
    elif isinstance(instance, list) and len(instance) > most:
        yield ValidationError(f"it may have {most} items, not {len(instance)}")


def _multiple_of(validator: Any, unit: float, instance: Any, schema: Mapping[str, Any]) -> Errors:  # noqa: ARG001
    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    if Fraction(repr(instance)) % Fraction(repr(unit)):
        yield ValidationError(f"{instance!r} is not a multiple of {unit!r}")
