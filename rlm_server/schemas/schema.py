"""A JSON Schema from outside: read and checked once, and then values are looked at by it.

It is bounded before anything is done with it: its bytes, its nesting, its values, and how often one value is looked at
by it, with all that `$ref` and `allOf` and their kin lead to. Nothing is fetched: a `$ref` stays within the document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from rlm_server.contexts.search import PatternRefused
from rlm_server.schemas.values import Json, NotJson, read
from rlm_server.schemas.work import TooMuchWork, Work

if TYPE_CHECKING:  # which takes 0.2 s, and most servers do without
    from jsonschema.exceptions import ValidationError
    from referencing import Registry
    from referencing._core import Resolver

DIALECT = "https://json-schema.org/draft/2020-12/schema"

MAX_SCHEMA = 64 << 10
"""Bytes of UTF-8 of the JSON Schema of an answer: its model is sent it in every call."""

MAX_SCHEMA_LEVELS = 32
"""Levels of nesting of a JSON Schema."""

MAX_SCHEMA_VALUES = 5_000
"""Values of JSON in the JSON Schema of an answer."""

MAX_IN_PLACE = 1_000
"""Parts of a JSON Schema that look at one and the same value, counted as often as `$ref`, `allOf` and their kin lead to
them: a few lines of them could be a billion."""

MAX_HOPS = 32
"""Parts of a JSON Schema that lead to one another at one and the same value."""

MAX_VALUE_LEVELS = 64
"""Levels of nesting of a value that is looked at by a schema."""

MAX_VALUES = 200_000
"""Values of JSON in a value that is looked at by a schema: each takes some 200 bytes of memory meanwhile."""

MAX_VIOLATIONS = 20
"""Of a value or a schema that are told."""

MAX_VIOLATION = 300
"""Characters of what is told of one violation, and of its path."""

_REFUSED = {
    "$id": "names another document: only `$ref` within this one is followed",
    "$schema": "may stand at the beginning alone",
    "$dynamicRef": "is not followed here: use `$ref`",
    "$dynamicAnchor": "is not followed here: use `$anchor` and `$ref`",
    "unevaluatedItems": "is not known here: use `prefixItems` and `items`",
    "unevaluatedProperties": "is not known here: use `additionalProperties`",
}
"""Keywords that no schema may have, and why."""

_IN_PLACE_ONE = ("not", "if", "then", "else")
_IN_PLACE_LIST = ("allOf", "anyOf", "oneOf")
_IN_PLACE_MAP = ("dependentSchemas",)
_CHILD_ONE = ("items", "contains", "additionalProperties", "propertyNames")
_CHILD_LIST = ("prefixItems",)
_CHILD_MAP = ("properties", "patternProperties", "$defs", "definitions")

_OF_KIND = frozenset({"type", "required", "additionalProperties"})
"""Keywords whose violations say that a value is of another kind."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a schema may be: bytes of UTF-8, and values of JSON, to which its keys count `with_keys`."""

    size: int
    values: int
    with_keys: bool = False


OF_ANSWERS = Bounds(MAX_SCHEMA, MAX_SCHEMA_VALUES)


class SchemaRefused(ValueError):
    """A text is no JSON Schema, or none that is looked at here; `violations` says all that is wrong with it."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations


@dataclass(frozen=True, slots=True)
class Violation:
    """Something of a value that is not what its schema says. `path` is a JSON pointer, empty for the whole.

    `of_kind` says that the value is of another type, missing, or one too many.
    """

    path: str
    message: str
    of_kind: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema that may be looked at values by. `root` has its keywords: none where it is true or false."""

    text: str
    root: Mapping[str, Any]
    _contents: Json

    @classmethod
    def of(cls, text: str, cancelled: Callable[[], bool] = lambda: False, bounds: Bounds = OF_ANSWERS) -> Schema:
        """Read a schema and check it. This blocks for up to seconds, so it belongs in a thread.

        Raises:
            SchemaRefused: it is none, or more than one may be.
        """
        size = len(text.encode("utf-8", "replace"))
        if size > bounds.size:
            raise SchemaRefused(Violation("", f"may have {bounds.size} bytes of UTF-8, not {size}"))
        try:
            contents = read(text, most_levels=MAX_SCHEMA_LEVELS, most_values=bounds.values, with_keys=bounds.with_keys)
        except NotJson as error:
            raise SchemaRefused(Violation("", str(error))) from None
        if not isinstance(contents, bool | dict):
            raise SchemaRefused(Violation("", f"must be an object or a boolean, not {contents!r}"))
        if isinstance(contents, dict):
            _check_dialect(contents)
            work = Work(cancelled)
            _check_by_metaschema(contents, work)
            _check_parts(contents, work)
        return cls._made(text, contents)

    @classmethod
    def checked(cls, text: str) -> Schema:
        """Take the text of a schema that was checked before, as it is."""
        contents = read(text, most_levels=MAX_SCHEMA_LEVELS, most_values=MAX_SCHEMA_VALUES)
        if isinstance(contents, dict):
            _check_dialect(contents)
        return cls._made(text, contents)

    @classmethod
    def _made(cls, text: str, contents: Json) -> Schema:
        return cls(text, json.loads(text) if isinstance(contents, dict) else {}, contents)

    def violations(self, value: Json, work: Work) -> tuple[Violation, ...]:
        """Return what of a value, as `values.read` gives it, is not what the schema says: the first of it.

        This blocks for up to seconds, so it belongs in a thread. One that cannot be looked at wholly is a violation.
        """
        resolver = _registry().resolver_with_root(_resource(self._contents))
        return _violations(self._contents, resolver, value, work)


def _check_dialect(contents: dict[str, Any]) -> None:
    dialect = contents.pop("$schema", DIALECT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        raise SchemaRefused(Violation("/$schema", f"must be {DIALECT}, or left out"))
    if not isinstance(contents.pop("$id", ""), str):  # its own name, by which nothing refers to it
        raise SchemaRefused(Violation("/$id", "must be a text"))


def _check_by_metaschema(contents: dict[str, Any], work: Work) -> None:
    metaschema, resolver = _metaschema()
    found = _violations(metaschema, resolver, contents, work)
    if found:
        raise SchemaRefused(*found)


@cache
def _metaschema() -> tuple[Any, Resolver[Any]]:
    from jsonschema_specifications import REGISTRY

    # Without `$schema`, which would have `jsonschema` go on with keywords of its own.
    known = {uri: dict(REGISTRY.contents(uri)) for uri in REGISTRY if uri.startswith(DIALECT.removesuffix("schema"))}
    for one in known.values():
        one.pop("$schema")
    registry = _registry().with_resources((uri, _resource(one)) for uri, one in known.items()).crawl()
    return known[DIALECT], registry.resolver(DIALECT)


def _violations(schema: Any, resolver: Resolver[Any], value: Any, work: Work) -> tuple[Violation, ...]:
    from rlm_server.schemas.keywords import errors

    found: list[Violation] = []
    try:
        found.extend(map(_told, islice(errors(schema, resolver, value, work), MAX_VIOLATIONS)))
    except (TooMuchWork, PatternRefused) as error:
        found.append(Violation("", str(error)))
    except RecursionError:
        found.append(Violation("", "it is nested too deep to be looked at"))
    return tuple(found)


def _registry() -> Registry[Any]:
    """Return a registry without any document, which fetches none."""
    from referencing import Registry

    return Registry()


def _resource(contents: Any) -> Any:
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012.create_resource(contents)


def _told(error: ValidationError) -> Violation:
    """Say what is wrong, and of a value that is none of several also why it is not the first few."""
    message = error.message
    parts = [Violation(_pointer(one.absolute_path), one.message[:MAX_VIOLATION]) for one in (error.context or ())[:3]]
    if parts:
        message += f" ({'; '.join(map(str, parts))})"
    path = _pointer(error.absolute_path)[:MAX_VIOLATION]
    return Violation(path, message[:MAX_VIOLATION], error.validator in _OF_KIND)


def _pointer(path: Any) -> str:
    return "".join(f"/{str(part)[:MAX_VIOLATION].replace('~', '~0').replace('/', '~1')}" for part in path)


# ---- the parts of a schema -------------------------------------------------------------------------------------------


def _check_parts(contents: dict[str, Any], work: Work) -> None:
    """Look at every part of a schema, and at where its parts lead, without following any for long."""
    parts = _Parts(contents)
    try:
        found = [*islice(parts.wrong(work), MAX_VIOLATIONS)]
    except TooMuchWork as error:
        raise SchemaRefused(Violation("", str(error))) from None
    if not found:
        found = [*islice(parts.unbounded(), 1)]
    if found:
        raise SchemaRefused(*found)


class _Parts:
    """The parts of a schema that are schemas themselves, with where they stand."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._resolver = _registry().resolver_with_root(_resource(root))
        self._root = root
        self._places: dict[int, str] = {}
        self._parts = [part for part in self._walk(root, "") if isinstance(part, dict)]
        self._known: dict[int, tuple[int, int]] = {}
        """Of parts that were looked at, how often a value is looked at in them, and how many lead to one another."""

    def _walk(self, part: Any, place: str) -> Iterator[Any]:
        self._places[id(part)] = place
        yield part
        if isinstance(part, dict):
            for place_of, one in (*_within(part, _IN_PLACE_ONE, _IN_PLACE_LIST, _IN_PLACE_MAP),
                                  *_within(part, _CHILD_ONE, _CHILD_LIST, _CHILD_MAP)):  # fmt: skip
                yield from self._walk(one, f"{place}{place_of}")

    def wrong(self, work: Work) -> Iterator[Violation]:
        """Say what no schema may hold: references to elsewhere, patterns that may take for ever."""
        for part in self._parts:
            place = self._places[id(part)]
            for keyword in _REFUSED.keys() & part.keys():
                yield Violation(f"{place}/{keyword}", _REFUSED[keyword])
            if "$ref" in part and (why := self._wrong_reference(part["$ref"])):
                yield Violation(f"{place}/$ref", why)
            patterns = [("pattern", part["pattern"])] if "pattern" in part else []
            patterns += [(f"patternProperties/{_escaped(one)}", one) for one in part.get("patternProperties", ())]
            for where, pattern in patterns:
                if (refusal := work.refusal_of(pattern)) is not None:
                    yield Violation(f"{place}/{where}"[:MAX_VIOLATION], refusal)

    def _wrong_reference(self, reference: str) -> str:
        if not reference.startswith("#"):
            return "must begin with #: nothing outside of this schema is fetched"
        target = self._target(reference)
        if not isinstance(target, bool) and id(target) not in self._places:
            return "leads to no part of this schema that is one itself"
        return ""

    def _target(self, reference: str) -> Any:
        """Return what a reference leads to; something of none of the parts where that is nothing."""
        from referencing.exceptions import Unresolvable

        try:
            return self._resolver.lookup(reference).contents
        except (Unresolvable, ValueError, TypeError, LookupError):
            return None

    def unbounded(self) -> Iterator[Violation]:
        """Say which parts would look at a value for ever, or far too often."""
        for part in self._parts:
            place = self._places[id(part)]
            try:
                times, hops = self._times(part, ())
            except _Circle:
                yield Violation(place, "leads back to itself at the same value, which no value satisfies")
                return
            except _TooFar:
                times, hops = 0, MAX_HOPS + 1
            if times > MAX_IN_PLACE:
                yield Violation(
                    place, f"has more than {MAX_IN_PLACE} parts look at one value, as often as they are led to"
                )
            elif hops > MAX_HOPS:
                yield Violation(place, f"has more than {MAX_HOPS} parts lead to one another at one value")

    def _times(self, part: Any, above: tuple[int, ...]) -> tuple[int, int]:
        if not isinstance(part, dict):
            return 1, 1
        if id(part) in above:
            raise _Circle
        if len(above) > MAX_HOPS:
            raise _TooFar
        known = self._known.get(id(part))
        if known is None:
            led = [one for _, one in _within(part, _IN_PLACE_ONE, _IN_PLACE_LIST, _IN_PLACE_MAP)]
            if "$ref" in part:
                led.append(self._target(part["$ref"]))
            below = [self._times(one, (*above, id(part))) for one in led]
            known = 1 + sum(times for times, _ in below), 1 + max((hops for _, hops in below), default=0)
            self._known[id(part)] = known
        return known


class _Circle(Exception):
    """A part of a schema leads to itself at the same value."""


class _TooFar(Exception):
    """A part of a schema leads over too many others."""


def _within(
    part: dict[str, Any], ones: tuple[str, ...], lists: tuple[str, ...], maps: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """Yield the schemas that stand in one, with where."""
    for keyword in ones:
        if keyword in part:
            yield f"/{keyword}", part[keyword]
    for keyword in lists:
        for place, one in enumerate(part.get(keyword, ())):
            yield f"/{keyword}/{place}", one
    for keyword in maps:
        for key, one in part.get(keyword, {}).items():
            yield f"/{keyword}/{_escaped(key)}", one


def _escaped(key: str) -> str:
    return key[:MAX_VIOLATION].replace("~", "~0").replace("/", "~1")
