"""JSON Schemas from outside: bounded, checked as a whole, and used to check values in a bounded number of steps.

They are of JSON Schema 2020-12, without what would fetch another document or cannot be bounded: `REFUSED` has that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import re2  # type: ignore[import-untyped]

from rlm_server.repl.bounds import cut
from sandbox.bounded_json import Decoder, Json, decoded, nodes_of

MAX_SCHEMA_BYTES = 16 << 10
"""Bytes of UTF-8 of the JSON Schema of a tool's arguments."""
MAX_SCHEMA_NODES = 2_000
"""Values and keys of such a schema."""
MAX_STEPS = 100_000
"""Steps that checking one value takes: a keyword, an item, 32 characters. That is a second of a processor at most."""
MAX_TOLD = 10
"""Violations of one value that are told. Others are counted."""
MAX_VIOLATION = 300
"""Bytes of UTF-8 of one violation."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PATTERN_MEMORY = 1 << 20
"""Bytes that one pattern may take."""


class SchemaRefused(ValueError):
    """A schema is not one that can be used; `violations` says all that is wrong with it, and where."""

    def __init__(self, violations: Iterable[str]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(self.violations))


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with a value; `path` is where, as a JSONPath.

    `of_kind` says that a value is of another type, missing, or one too many.
    """

    path: str
    message: str
    of_kind: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was checked. `root` is its JSON."""

    root: Mapping[str, Any]

    @classmethod
    def read(cls, text: str) -> Schema:
        """Read a schema. The work is linear in its size.

        Raises:
            SchemaRefused: it is too large, no JSON object, or no schema that can be used.
        """
        size = len(text.encode("utf-8", "replace"))
        if size > MAX_SCHEMA_BYTES:
            raise SchemaRefused([f"may have {MAX_SCHEMA_BYTES} bytes of UTF-8, not {size}"])
        try:
            root = read_json(text, MAX_SCHEMA_NODES)
        except ValueError as error:
            raise SchemaRefused([f"is no JSON that can be read: {error}"]) from None
        if not isinstance(root, dict):
            raise SchemaRefused(["must be a JSON object"])
        reading = _Reading(root)
        reading.schema(root, "#")
        wrong = reading.finish()
        if wrong:
            raise SchemaRefused(wrong)
        return cls(root)

    def violations(self, value: Json) -> tuple[Violation, ...]:
        """Return what is wrong with a value, at most `MAX_TOLD` and a line that counts the others."""
        _left.set([MAX_STEPS])
        found: list[Violation] = []
        more = 0
        try:
            for error in _validator_class()(self.root, registry=_registry()).iter_errors(value):
                if len(found) < MAX_TOLD:
                    of_kind = error.validator in ("type", "required", "additionalProperties")
                    found.append(Violation(error.json_path, cut(error.message, MAX_VIOLATION), of_kind))
                else:
                    more += 1
        except (_TooManySteps, RecursionError):
            found.append(Violation("$", f"checking it takes more than {MAX_STEPS} steps", False))
        if more:
            found.append(Violation("$", f"and {more} more", False))
        return tuple(found)


def read_json(text: str, most: int) -> Json:
    """Read JSON of at most so many values and keys, 32 levels deep. Objects may have any number of keys.

    Raises:
        ValueError: it is none, or holds a key twice, not-a-number or half of a character.
    """
    try:
        encoded = text.encode()
        nodes_of(encoded, most)
        return decoded(encoded, _DECODER)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


_DECODER = Decoder(_object)


# ---- reading a schema ------------------------------------------------------------------------------------------------

_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})

REFUSED = frozenset(
    {"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary",
     "patternProperties", "unevaluatedItems", "unevaluatedProperties"}
)  # fmt: skip
"""Keywords that a schema may not have."""

_ONE = frozenset({"additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else"})
_SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"})
"""Keywords whose schemas look at the same value."""


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_positive(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _are_lists_of_names(value: Json) -> bool:
    return isinstance(value, dict) and all(map(_are_names, value.values()))


def _is_type(value: Json) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(one, str) and one in _TYPES for one in names)


def _all(names: str, fits: Callable[[Json], bool], wanted: str) -> dict[str, tuple[Callable[[Json], bool], str]]:
    return dict.fromkeys(names.split(), (fits, f"must be {wanted}"))


_VALUES: Mapping[str, tuple[Callable[[Json], bool], str]] = {
    **_all("type", _is_type, f"one or several of {', '.join(sorted(_TYPES))}"),
    **_all("required", _are_names, "a list of strings"),
    **_all("enum", lambda value: isinstance(value, list) and bool(value), "a list that is not empty"),
    **_all("multipleOf", _is_positive, "a number above 0"),
    **_all("dependentRequired", _are_lists_of_names, "an object of lists of strings"),
    **_all("uniqueItems", lambda value: isinstance(value, bool), "true or false"),
    **_all("minimum maximum exclusiveMinimum exclusiveMaximum", _is_number, "a number"),
    **_all("minLength maxLength minItems maxItems", _is_count, "a whole number from 0 on"),
    **_all("minProperties maxProperties minContains maxContains", _is_count, "a whole number from 0 on"),
    **_all("title description format", lambda value: isinstance(value, str), "a string"),
    **_all("$schema", lambda value: value in (DIALECT, f"{DIALECT}#"), DIALECT),
}


@dataclass(slots=True)
class _Reading:
    """Walks through a schema once, and notes what is wrong, and which part looks at the same value as which."""

    root: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    same_value: dict[str, list[str]] = field(default_factory=dict)

    def schema(self, schema: Json, path: str) -> None:
        self.parts.add(path)
        if schema is True or (schema is False and path.endswith("/additionalProperties")):
            return
        if not isinstance(schema, dict):
            self.wrong.append(f"{path} must be a schema: an object or true; false as additionalProperties alone")
            return
        for keyword, value in schema.items():
            self._keyword(keyword, value, path)

    def _keyword(self, keyword: str, value: Json, path: str) -> None:
        place = f"{path}/{_escaped(keyword)}"
        if keyword in REFUSED:
            self.wrong.append(f"{place} is not supported")
        elif keyword == "$ref":
            self._reference(value, path, place)
        elif keyword == "pattern":
            self._pattern(value, place)
        elif keyword in _ONE:
            self._part(keyword, value, path, place)
        elif keyword in _SEVERAL:
            self._parts(keyword, value if isinstance(value, list) and value else None, path, place, "a list")
        elif keyword in _NAMED:
            self._parts(keyword, value if isinstance(value, dict) else None, path, place, "an object")
        elif keyword in _VALUES and not _VALUES[keyword][0](value):
            self.wrong.append(f"{place} {_VALUES[keyword][1]}")

    def _parts(
        self, keyword: str, value: list[Json] | dict[str, Json] | None, path: str, place: str, what: str
    ) -> None:
        if value is None:
            self.wrong.append(f"{place} must be {what} of schemas")
            return
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            self._part(keyword, one, path, f"{place}/{_escaped(str(name))}")

    def _part(self, keyword: str, value: Json, path: str, place: str) -> None:
        if keyword in _IN_PLACE:
            self.same_value.setdefault(path, []).append(place)
        self.schema(value, place)

    def _reference(self, value: Json, path: str, place: str) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            self.wrong.append(f"{place} must name a part of this schema: # or #/…")
            return
        self.same_value.setdefault(path, []).append(value)

    def _pattern(self, value: Json, place: str) -> None:
        if not isinstance(value, str) or not _can_be_compiled(value):
            self.wrong.append(f"{place} must be a regular expression of RE2's syntax")

    def finish(self) -> list[str]:
        """Return what is wrong, references to nothing and to themselves included."""
        for path, places in self.same_value.items():
            for one in places:
                if one not in self.parts:
                    self.wrong.append(f"{path}/$ref: there is no schema at {cut(one, 100)}")
        if not self.wrong and (at := self._endless()) is not None:
            self.wrong.append(f"{at} refers to itself without end")
        return self.wrong

    def _endless(self) -> str | None:
        """Return a part that, for one and the same value, comes back to itself."""
        done: set[str] = set()
        for start in self.same_value:
            on_way, stack = set[str](), [(start, iter(self.same_value[start]))]
            on_way.add(start)
            while stack:
                path, rest = stack[-1]
                after = next(rest, None)
                if after is None:
                    stack.pop()
                    on_way.discard(path)
                    done.add(path)
                elif after in on_way:
                    return after
                elif after not in done:
                    on_way.add(after)
                    stack.append((after, iter(self.same_value.get(after, ()))))
        return None


def _escaped(name: str) -> str:
    return cut(name.replace("~", "~0").replace("/", "~1"), MAX_VIOLATION)


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors, options.max_mem = False, _PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    finally:
        re2.purge()  # or it would keep 128 patterns


def _can_be_compiled(pattern: str) -> bool:
    try:
        _compiled(pattern)
    except re2.error:
        return False
    return True


# ---- checking values -------------------------------------------------------------------------------------------------


class _TooManySteps(Exception):
    pass


_left: ContextVar[list[int]] = ContextVar("steps that are left")


@cache
def _registry() -> Any:
    """Return where other documents are: nowhere."""
    from referencing import Registry

    return Registry()


@cache
def _validator_class() -> Any:
    """Return what checks values. Its library takes a tenth of a second to import, so it waits for its first use."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(_: Any, wanted: str, instance: Json, __: Any) -> Iterator[Any]:
        if isinstance(instance, str) and _compiled(wanted).search(instance) is None:
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def unique(_: Any, wanted: bool, instance: Json, __: Any) -> Iterator[Any]:
        if not (wanted and isinstance(instance, list)):
            return
        if len({json.dumps(_plain(one), sort_keys=True) for one in instance}) < len(instance):
            yield ValidationError("its items are not all different")

    own = {"pattern": pattern, "uniqueItems": unique}
    checks = {**Draft202012Validator.VALIDATORS, **own}
    return extend(Draft202012Validator, {name: _counted(name, check) for name, check in checks.items()})


def _counted(keyword: str, check: Callable[..., Iterator[Any] | None]) -> Callable[..., Iterator[Any]]:
    """Count what a keyword has done, and keep no long message: it shows the value, and many may be held at once."""

    def step(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _spend(_work(keyword, wanted, instance))
        for error in check(validator, wanted, instance, schema) or ():
            _spend(len(error.message) // _CHARACTERS)
            error.message = cut(error.message, MAX_VIOLATION)
            yield error

    return step


def _spend(steps: int) -> None:
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise _TooManySteps


def _work(keyword: str, wanted: Any, instance: Any) -> int:
    match keyword:
        case "enum" | "const":
            return _size(wanted)
        case "uniqueItems":
            return _size(instance)
        case "pattern":
            return _COMPILING + _size(instance)
    return 1 + _length(wanted) + (_length(instance) if keyword in _ONE else 0)


_CHARACTERS = 32
"""Of a text, that count as a step."""
_COMPILING = 50
"""Steps that compiling a pattern counts as."""


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _size(value: Any) -> int:
    if isinstance(value, str):
        return 1 + len(value) // _CHARACTERS
    if isinstance(value, dict):
        return 1 + sum(map(_size, value)) + sum(map(_size, value.values()))
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1


def _plain(value: Json) -> Json:
    """Write whole numbers alike, as 1 and 1.0 are the same in JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value
