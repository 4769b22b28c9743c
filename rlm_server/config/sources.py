"""Where settings come from: arguments, environment variables `RLM_…`, one TOML file; and what is wrong with one."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from rlm_server.broker.providers.registry import with_keys
from rlm_server.config.described import DELIMITER, PREFIX, Setting, all_settings

FILE_VARIABLE = "RLM_CONFIG"

OTHER_VARIABLES: Mapping[str, str] = {
    FILE_VARIABLE: "The path of the TOML file.",
    "RLM_GUEST_ARTIFACTS": "A folder that holds the guest's parts, for machines that cannot fetch them.",
    "RLM_SERVER": "The clients': the server's address.",
    "RLM_API_KEY": "The clients': the key.",
    "RLM_CACHE": "`make`'s: where the guest image and what the tests fetch are kept.",
    "RLM_COMPATIBLE": "The tests': where a small model and its server are.",
    "RLM_TEST_KILLS": "The tests': how often a server, or a process, is killed.",
    "RLM_TEST_STOPS": "The tests': how often a turn is stopped at a random moment.",
    "RLM_FUZZ_CASES": "The tests': how many hostile requests a server is sent.",
    "RLM_FUZZ_SEED": "The tests': which ones.",
}
"""Variables that begin as the settings' do and are none. Any other is a mistake."""

_KUBERNETES = re.compile(r"RLM_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*")
_KUBERNETES_PORT = re.compile(r"RLM_(\w+_)?PORT=(tcp|udp|sctp)://.*")
"""What Kubernetes sets in every pod beside a service whose name begins with `rlm`."""


class SourceError(Exception):
    """A source cannot be read; the message names it."""


class Environment(EnvSettingsSource):
    """The variables, and providers' keys by the names they have elsewhere.

    Fractions are decimals, as the file's are: some of them are money, and a float holds few amounts exactly.
    """

    def __call__(self) -> dict[str, Any]:
        """Return what the variables say."""
        values = super().__call__()
        for spec in with_keys():
            key = os.environ.get(spec.key_variable, "")
            if key:
                values.setdefault(spec.key_setting, key)
        return values

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Return a variable's value, parsed where it is a table."""
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError as error:
            raise SourceError(f"{field_name}: {_variable((field_name,))} is not JSON: {error}") from None

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ARG002
        """Parse a table."""
        return json.loads(value, parse_float=Decimal)


@dataclass(frozen=True, slots=True)
class File:
    """The file's content, and where it is; nothing where there is none."""

    path: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls) -> File:
        """Read the file that the variable names.

        Raises:
            SourceError: it is not there, or is not TOML.
        """
        path = os.environ.get(FILE_VARIABLE, "")
        if not path:
            return cls()
        if not Path(path).is_file():
            raise SourceError(f"{FILE_VARIABLE}: there is no file {path}")
        try:
            return cls(path, tomllib.loads(Path(path).read_text(encoding="utf-8"), parse_float=Decimal))
        except ValueError as error:
            raise SourceError(f"{FILE_VARIABLE}: {path} is not TOML: {error}") from None


def problems(error: ValidationError, model: type[BaseSettings], arguments: Mapping[str, Any]) -> list[str]:
    """Say of each setting that is wrong what it is called, what it may be, and where its value comes from."""
    file = File.read()
    sources: list[tuple[Mapping[str, Any], Callable[[Sequence[Any]], str]]] = [
        (arguments, lambda _: "given as an argument"),
        (Environment(model)(), lambda place: f"from {_variable(place)}"),
        (file.content, lambda _: f"from {file.path}"),
    ]
    settings = all_settings(model)
    messages: dict[str, None] = {}
    for one in error.errors(include_url=False):
        text = _problem(one["type"], one["msg"], one["input"], one["loc"], settings)
        depths = [_depth(content, one["loc"]) for content, _ in sources]
        if deepest := max(depths):
            text += f" ({sources[depths.index(deepest)][1](one['loc'])})"
        messages[text] = None  # a union tells of each of its parts
    return list(messages)


def unknown_variables(model: type[BaseModel]) -> list[str]:
    """Say of each variable that is named like a setting's, and is none, what may have been meant."""
    settings = all_settings(model)
    names = [*OTHER_VARIABLES, *(setting.variable for setting in settings)]
    messages = []
    for name, value in sorted(os.environ.items()):
        upper, line = name.upper(), f"{name.upper()}={value}"
        if not upper.startswith(PREFIX) or upper in OTHER_VARIABLES:
            continue
        if _KUBERNETES.fullmatch(line) or _KUBERNETES_PORT.fullmatch(line):
            continue
        path = upper.removeprefix(PREFIX).lower().split(DELIMITER)
        if not any(_leads_to(path, setting) for setting in settings):
            messages.append(f"{name}: there is no such setting{_near(upper, names)}")
    return messages


def _leads_to(path: Sequence[str], setting: Setting) -> bool:
    """Whether a variable is a setting's, or of something in its table, which is looked at with the table."""
    return setting.is_at(path) or (setting.is_table and setting.is_at(path[: len(setting.path)]))


def _problem(kind: str, message: str, value: Any, place: Sequence[Any], settings: Sequence[Setting]) -> str:
    name = ".".join(map(str, place))
    if kind == "extra_forbidden":
        siblings = [setting.path[-1] for setting in settings if setting.is_at((*place[:-1], setting.path[-1]))]
        return f"{name}: there is no such setting{_near(str(place[-1]), siblings)}"
    setting = next((one for one in settings if not one.is_table and one.is_at(place[: len(one.path)])), None)
    if setting is not None and (must_be := _must_be(setting, kind)):
        written = repr(value) if isinstance(value, str) else str(value)
        shown = f", not {written[:50]}" if setting.bounds and kind != "missing" else ""
        return f"{'.'.join(map(str, place[: len(setting.path)]))}: must be {must_be}{shown}"
    text = message.removeprefix("Value error, ")
    return f"{name}: {text}" if name else text  # one about several settings names them itself


def _must_be(setting: Setting, kind: str) -> str:
    """What a setting must be, where that is what an error of this kind is about."""
    if kind == "missing":
        return "given"
    if kind.startswith(("greater_than", "less_than")) or kind.endswith(("_type", "_parsing", "_from_float")):
        if not setting.bounds:
            return setting.kind.replace("`", "")
        return f"{setting.bounds}, in bytes" if setting.unit == "bytes" else f"{setting.bounds} {setting.unit}"
    return ""


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.75)
    return f"; is it {near[0]}?" if near else ""


def _depth(content: Any, place: Sequence[Any]) -> int:
    """How many parts of a place there are in what a source says."""
    for depth, part in enumerate(place):
        if not isinstance(content, Mapping) or part not in content:
            return depth
        content = content[part]
    return len(place)


def _variable(place: Sequence[Any]) -> str:
    """The variable that says what is at a place: its own, or that of a table around it, or another's that gives it."""
    there = {name.upper(): name for name in os.environ}
    for length in range(len(place), 0, -1):
        if (name := PREFIX + DELIMITER.join(map(str, place[:length])).upper()) in there:
            return there[name]
    keys = {spec.key_setting: spec.key_variable for spec in with_keys()}
    return keys.get(str(place[0]), "the environment")
