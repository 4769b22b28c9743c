"""Every setting in words, from the settings' own types: for the page of them all, and for what is wrong with one."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from rlm_server.config.declared import DefaultWords, OtherVariable, Unit

PREFIX, DELIMITER = "RLM_", "__"
"""Of the variables of settings; the second stands for the dot of a name."""

NAME = "NAME"
"""Stands for a name that the operator chooses, in the path of a setting."""

TABLE = "table"

_KINDS = {int: "integer", float: "number", Decimal: "number", str: "text", Path: "path", SecretStr: "secret text"}
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `path` are the parts of its name; `bounds` and `unit` are empty where it is no number."""

    path: tuple[str, ...]
    kind: str
    default: str
    bounds: str
    unit: str
    other_variable: str = ""

    @property
    def is_table(self) -> bool:
        """Whether it holds others."""
        return self.kind.startswith(TABLE)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + DELIMITER.join(part if part == NAME else part.upper() for part in self.path)

    def is_at(self, place: Sequence[object]) -> bool:
        """Whether this is the setting at a place, which has names where the path has `NAME`."""
        return len(place) == len(self.path) and all(
            part in (NAME, str(at)) for part, at in zip(self.path, place, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that belong together. `table` is the path of the file's table they are in; none is its top."""

    title: str
    doc: str
    table: tuple[str, ...]
    settings: tuple[Setting, ...]
    model: type[BaseModel]


@cache
def sections(model: type[BaseModel]) -> tuple[Section, ...]:
    """Return all settings: a section for each class that a settings' class is made of, then those of its tables."""
    by_class: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for cls in model.__mro__:
        own = [name for name in inspect.get_annotations(cls) if name in model.model_fields]
        if own:
            by_class[cls.__name__] = [*own, *by_class.get(cls.__name__, [])]
            titles[cls.__name__] = cls.__doc__ or ""
    parts = [_section(model, titles[cls], (), names) for cls, names in by_class.items()]
    return (*parts, *_tables(model, ()))


def all_settings(model: type[BaseModel]) -> list[Setting]:
    """Return all settings in order."""
    return [setting for section in sections(model) for setting in section.settings]


def _tables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Section]:
    for name, field in model.model_fields.items():
        if (inner := _table_of(field)) is not None:
            table, of = inner
            where = (*path, name, *table)
            yield _section(of, of.__doc__ or "", where, list(of.model_fields))
            yield from _tables(of, where)


def _table_of(field: FieldInfo) -> tuple[tuple[str, ...], type[BaseModel]] | None:
    """The model that a table holds, and whether under names of the operator's choice."""
    annotation = field.annotation
    path: tuple[str, ...] = ()
    if typing.get_origin(annotation) is dict:
        path, annotation = (NAME,), typing.get_args(annotation)[1]
    return (path, annotation) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _section(model: type[BaseModel], doc: str, table: tuple[str, ...], names: list[str]) -> Section:
    title, _, rest = doc.partition("\n")
    settings = tuple(_setting((*table, name), model.model_fields[name]) for name in names)
    return Section(title.rstrip("."), " ".join(rest.split()), table, settings, model)


def docs(section: Section) -> dict[str, str]:
    """Return what each setting of a section is, by the last part of its name.

    For most it is the string below the field. No start reads those: it would take longer than all else of the settings.
    """
    strings = {name: doc for cls in section.model.__mro__ for name, doc in _below_fields(cls)}
    fields = {setting.path[-1]: section.model.model_fields[setting.path[-1]] for setting in section.settings}
    return {name: " ".join((field.description or strings[name]).split()) for name, field in fields.items()}


def _below_fields(cls: type) -> Iterator[tuple[str, str]]:
    node = _classes(cls.__module__).get(cls.__name__) if cls.__module__.startswith("rlm_server.") else None
    for field, below in pairwise(node.body if node else ()):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                yield name, doc


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    source = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}


def _setting(path: tuple[str, ...], field: FieldInfo) -> Setting:
    marks = list(_marks(field.annotation, field.metadata))
    unit = next((mark.name for mark in marks if isinstance(mark, Unit)), "")
    words = [mark.words for mark in marks if isinstance(mark, DefaultWords)]
    other = next((mark.name for mark in marks if isinstance(mark, OtherVariable)), "")
    default = words[0] if words else _default(field, unit)
    return Setting(path, _kind(field.annotation), default, _bounds(marks, unit), unit, other)


def _marks(annotation: Any, metadata: Sequence[Any]) -> Iterator[Any]:
    """All that stands beside a type, and beside the parts of a union."""
    for mark in metadata:
        yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)
    if typing.get_origin(annotation) is Annotated:
        inner, *beside = typing.get_args(annotation)
        yield from _marks(inner, beside)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _marks(part, ())


def _kind(annotation: Any) -> str:
    """A type in words."""
    if typing.get_origin(annotation) is Annotated:
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(annotation) if part is not type(None))
    if annotation is bool:
        return "`true` or `false`"
    if typing.get_origin(annotation) is list:
        return f"list of {_several(_kind(typing.get_args(annotation)[0]))}"
    if typing.get_origin(annotation) is dict:
        return f"{TABLE} of {_several(_kind(typing.get_args(annotation)[1]))}"
    return _KINDS.get(annotation, TABLE)


def _several(kind: str) -> str:
    """A type in the plural: `list of texts` becomes `lists of texts`."""
    first, of, rest = kind.partition(" of ")
    return f"{first}s{of}{rest}"


def _bounds(marks: Sequence[Any], unit: str) -> str:
    """What a number may be, in words that go on from "must be"."""
    above = least = most = ""
    for mark in marks:
        match mark:
            case annotated_types.Gt(gt=number):
                above = shown_number(number, unit)
            case annotated_types.Ge(ge=number):
                least = shown_number(number, unit)
            case annotated_types.Le(le=number):
                most = shown_number(number, unit)
    if above:
        return f"above {above}, up to {most}" if most else f"above {above}"
    return f"from {least} to {most}" if most else f"at least {least}" if least else ""


def shown_number(number: Any, unit: str) -> str:
    """Write a number of a unit: bytes as KiB, MiB, GiB or TiB, where they are whole ones."""
    if unit == "bytes":
        for size, name in _BINARY:
            if number >= size and number % size == 0:
                return f"{number // size:,} {name}"
    return f"{int(number) if number == int(number) else number:,}"


def _default(field: FieldInfo, unit: str) -> str:
    if field.is_required():
        return "must be given"
    match field.get_default(call_default_factory=True):
        case bool(value):
            return f"`{str(value).lower()}`"
        case (int() | float() | Decimal()) as value:
            return shown_number(value, unit)
        case str(value) if value:
            return f"`{value}`"
        case BaseModel():
            return "as below"
    return "none"
