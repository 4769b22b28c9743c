"""Tools as callers name them, read and checked, with what models and code are told of them."""

from __future__ import annotations

import builtins
import json
import keyword
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlm_server.repl.bounds import cut
from rlm_server.schemas.schema import Bounds, Schema, SchemaRefused
from rlm_server.shares.threads import Cancelled

MAX_TOOL_NAME = 64
"""Characters of the name of a tool."""
MAX_DESCRIPTION = 4_000
"""Characters of the description of a tool."""
MAX_ARGUMENTS_SCHEMA = 16 << 10
"""Bytes of UTF-8 of the JSON Schema of a tool's arguments."""
MAX_ARGUMENTS_SCHEMA_NODES = 2_000
"""Values and keys of such a schema."""
MAX_TOOLS_BYTES = 128 << 10
"""Bytes of UTF-8 of all that a run's tools say: names, descriptions, schemas. Its model is sent them in every turn."""
MAX_WRONG = 100
"""Things that are told to be wrong with the tools of one request."""
MAX_SHOWN = 600
"""Bytes of the schema of an argument that a model is shown."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_BOUNDS = Bounds(MAX_ARGUMENTS_SCHEMA, MAX_ARGUMENTS_SCHEMA_NODES, with_keys=True)
ASYNC = "_async"
"""What the name of a function's awaitable twin ends with."""

RESERVED = frozenset(dir(builtins)) | {
    "ImportCycleError", "PythonFinalizationError", "frozendict", "lazy", "sentinel",  # of the guest's newer Python
    "FINAL", "FINAL_VAR", "SHOW_VARS", "SUBMIT", "AnswerCut", "LimitExceeded", "ModelError", "ToolError", "answer",
    "budget", "context", "count", "kept", "llm_query", "llm_query_async", "llm_query_batched",
    "llm_query_batched_async", "printed", "rlm_query", "rlm_query_async", "rlm_query_batched",
    "rlm_query_batched_async", "search",
}  # fmt: skip
"""Names that the code has already."""


@dataclass(frozen=True, slots=True)
class AskedTool:
    """A tool as a caller asks for it. `seconds` is None where the tool has no time of its own."""

    name: str
    description: str
    arguments_schema: str
    seconds: float | None = None

    @property
    def size(self) -> int:
        """Bytes of UTF-8 of what it says."""
        said = (self.name, self.description, self.arguments_schema)
        return sum(len(text.encode("utf-8", "replace")) for text in said)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A field of a tool that is wrong, and what it may be."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a tool's function."""

    name: str
    annotation: str
    required: bool
    default: Any = None
    """Where it may be left out; None where the schema says none."""
    nullable: bool = True
    """Whether None is sent, and does not mean that it is left out."""

    @property
    def written(self) -> str:
        """How it stands in a signature."""
        typed = f"{self.name}: {self.annotation}" if self.annotation else self.name
        return typed if self.required else f"{typed} = {self.default!r}"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that was checked. Who answers it may take so many `seconds` for a call."""

    name: str
    description: str
    schema: Schema
    seconds: float
    size: int
    """Bytes of UTF-8 of what it says."""

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of its function, those that must be given first."""
        root = self.schema.root
        required = frozenset(root.get("required", ()))
        named = {name: one for name, one in root.get("properties", {}).items() if _is_parameter(name)}
        made = [_parameter(name, one if isinstance(one, dict) else {}, name in required) for name, one in named.items()]
        return sorted(made, key=lambda one: not one.required)

    @property
    def takes_others(self) -> bool:
        """Whether arguments may have names that are no parameters'."""
        root = self.schema.root
        more = root.get("additionalProperties", False) is not False
        return more or not all(map(_is_parameter, root.get("properties", {})))

    @property
    def prompt(self) -> str:
        """Its lines in the list that a model is shown."""
        parts = [one.written for one in self.parameters] + (["**others"] if self.takes_others else [])
        said = " ".join(self.description.split())
        lines = [f"- {self.name}({', '.join(parts)})" + (f": {said}" if said else "")]
        for name, one in self.schema.root.get("properties", {}).items():
            about = _about(one) if isinstance(one, dict) else ""
            if about:
                lines.append(f"  {name}: {about}")
        return "\n".join(lines)

    @property
    def for_guest(self) -> dict[str, Any]:
        """What the guest makes its function of."""
        parameters = [[p.name, p.annotation, p.required, p.default, p.nullable] for p in self.parameters]
        return {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
            "others": self.takes_others,
        }


def read_tools(
    asked: Sequence[AskedTool],
    most_seconds: float,
    field: str = "tools",
    taken: Collection[str] = (),
    cancelled: Cancelled = lambda: False,
) -> tuple[tuple[Tool, ...], list[Wrong]]:
    """Read tools, and say all that is wrong with them. This blocks for up to seconds, so it belongs in a thread."""
    wrong: list[Wrong] = []
    size = sum(one.size for one in asked)
    if size > MAX_TOOLS_BYTES:
        return (), [Wrong(field, f"may have {MAX_TOOLS_BYTES} bytes of UTF-8 together, not {size}")]
    tools, names = list[Tool](), {form for name in taken for form in (name, name + ASYNC)}
    for number, one in enumerate(asked):
        place = f"{field}[{number}]"
        before = len(wrong)
        wrong += _wrong_name(one.name, names, f"{place}.name")
        names |= {one.name, one.name + ASYNC}
        if len(one.description) > MAX_DESCRIPTION:
            words = f"may have {MAX_DESCRIPTION} characters, not {len(one.description)}"
            wrong.append(Wrong(f"{place}.description", words))
        schema = _read_schema(one.arguments_schema, f"{place}.arguments_schema", wrong, cancelled)
        if one.seconds is not None and not 0 < one.seconds <= most_seconds:
            words = f"must be more than 0 and at most {most_seconds:g} s (tool_seconds), not {one.seconds:.15g}"
            wrong.append(Wrong(f"{place}.timeout", words))
        if len(wrong) > MAX_WRONG:
            break
        if len(wrong) == before and schema is not None:
            seconds = most_seconds if one.seconds is None else one.seconds
            tools.append(Tool(one.name, one.description, schema, seconds, one.size))
    return tuple(tools), wrong


def _wrong_name(name: str, taken: set[str], place: str) -> Iterable[Wrong]:
    if not 0 < len(name) <= MAX_TOOL_NAME:
        yield Wrong(place, f"must have 1 to {MAX_TOOL_NAME} characters, not {len(name)}")
    elif _NAME.fullmatch(name) is None:
        yield Wrong(place, "must be a letter, and then letters, digits and '_', all of them ASCII")
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        yield Wrong(place, f"{name} is a keyword of Python")
    elif name in RESERVED:
        yield Wrong(place, f"{name} is a name that the code has already")
    elif name in taken or name + ASYNC in taken:
        yield Wrong(place, f"{name} is the name of another tool, or of its awaitable twin")


def _read_schema(text: str, place: str, wrong: list[Wrong], cancelled: Cancelled) -> Schema | None:
    try:
        schema = Schema.of(text or '{"type":"object"}', cancelled, _BOUNDS)
    except SchemaRefused as error:
        wrong += [Wrong(place, str(violation)) for violation in error.violations]
        return None
    if schema.root.get("type") != "object":
        wrong.append(Wrong(place, '/type: must be "object": arguments have names'))
        return None
    return schema


# ---- how its arguments look in Python --------------------------------------------------------------------------------

_ANNOTATIONS = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


def _is_parameter(name: str) -> bool:
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and len(name) <= MAX_TOOL_NAME


def _parameter(name: str, schema: Mapping[str, Any], required: bool) -> Parameter:
    annotation = _annotation(schema)
    nullable = not annotation or "None" in annotation.split(" | ")
    return Parameter(name, annotation, required, schema.get("default"), nullable)


def _annotation(schema: Any, level: int = 0) -> str:
    """Return how a type of the schema's is written in Python; nothing where that is not plain."""
    if not isinstance(schema, dict) or level > 2:
        return ""
    if "enum" in schema:
        written = ", ".join(map(repr, schema["enum"]))
        return f"Literal[{written}]" if len(written) <= 100 else _annotation(_without(schema, "enum"), level)
    for one in ("anyOf", "oneOf"):
        if one in schema:
            parts = [_annotation(part, level + 1) for part in schema[one][:8]]
            return " | ".join(dict.fromkeys(parts)) if all(parts) and len(schema[one]) <= 8 else ""
    types = schema.get("type")
    if isinstance(types, list):
        return " | ".join(_ANNOTATIONS[name] for name in types)
    if types == "array" and (inner := _annotation(schema.get("items"), level + 1)):
        return f"list[{inner}]"
    return _ANNOTATIONS.get(types, "") if isinstance(types, str) else ""


def _without(schema: Mapping[str, Any], name: Literal["enum", "description"]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != name}


def _about(schema: Mapping[str, Any]) -> str:
    """Say what an argument is, beyond its annotation."""
    said = " ".join(str(schema.get("description", "")).split())
    form = _without(schema, "description")
    if not form.keys() - {"type", "default", "title", "enum"} and _annotation(form):
        return said
    if form.keys() <= {"type", "items", "default", "title"} and not (form.get("items") or {}).keys() - {"type"}:
        return said
    return f"{said} {cut(json.dumps(form, ensure_ascii=False, separators=(',', ':')), MAX_SHOWN)}".strip()
