"""Python functions as tools of a run: their schemas, and answering the calls that the run's code makes of them."""

from __future__ import annotations

import asyncio
import inspect
import json
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rlm.v1 import run_pb2

from rlm_client.durations import seconds
from rlm_client.errors import AlreadyExists, FailedPrecondition, InvalidArgument

AT_ONCE = 16
"""Calls of one run that are answered at once, each in a thread of its own."""
_MAX_ERROR = 2_000
"""Characters of an error that the protocol takes."""
_MAX_DESCRIPTION = 4_000
"""Characters of a description that the protocol takes."""
_SIMPLE: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    dict: {"type": "object"},
    object: {},
    Any: {},
    inspect.Parameter.empty: {},
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of a run: `function` answers its calls, with the arguments by their names. `timeout` is in seconds."""

    name: str
    description: str
    schema: Mapping[str, Any]
    function: Callable[..., Any]
    timeout: float | None = None

    def message(self) -> run_pb2.Tool:
        """Write it as the protocol has it."""
        return run_pb2.Tool(
            name=self.name,
            description=self.description,
            arguments_schema=json.dumps(self.schema, ensure_ascii=False),
            timeout=None if self.timeout is None else seconds(self.timeout),
        )


AnyTool = Tool | Callable[..., Any]
"""A tool, or a function that is to be one."""


def tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
) -> Tool:
    """Make a tool of a function: its name, its docstring, and a JSON Schema of its signature.

    Parameters have annotations of `str`, `int`, `float`, `bool`, `None`, `list[…]`, `dict[str, …]`, `Literal[…]`,
    unions of these, `Any` or none. A default that is JSON is told. `**others` takes any other arguments. The function
    may be `async`. It is called in a thread, several calls at once. `timeout` bounds how long a call waits, in seconds.

    Raises:
        TypeError: a parameter has another annotation, or cannot be given by its name.
    """
    said = inspect.getdoc(function) or "" if description is None else description
    return Tool(
        function.__name__ if name is None else name, said[:_MAX_DESCRIPTION], _schema(function), function, timeout
    )


def tools_of(given: Iterable[AnyTool]) -> list[Tool]:
    """Make tools of functions, where they are none yet."""
    return [one if isinstance(one, Tool) else tool(one) for one in given]


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    properties, required, others = dict[str, Any](), list[str](), False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others = True
            continue
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise TypeError(f"{function.__name__}: {name} cannot be given by its name, as a tool's arguments are")
        properties[name] = _of_type(hints.get(name, parameter.empty), f"{function.__name__}: {name}")
        if parameter.default is parameter.empty:
            required.append(name)
        elif _is_json(parameter.default):
            properties[name] = {**properties[name], "default": parameter.default}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}


def _of_type(annotation: Any, where: str) -> dict[str, Any]:
    if isinstance(annotation, typing.Hashable) and annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return {"type": "array", "items": _of_type(inner[0], where)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _of_type(inner[1], where)}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of_type(one, where) for one in inner]}
    raise TypeError(f"{where}: {annotation!r} is no type that a tool's argument can have")


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


# ---- answering -------------------------------------------------------------------------------------------------------


class Submit(Protocol):
    """What answers a call: `Client.submit_result`."""

    def __call__(self, run_id: str, call_id: str, result: object = None, *, error: str = "") -> None:
        """Answer with a result, or with an error."""
        ...


class Answering:
    """Answers the calls of one run's tools, in threads. A context manager, which waits for those under way."""

    def __init__(self, run_id: str, tools: Iterable[Tool], submit: Submit) -> None:
        self._run_id, self._submit = run_id, submit
        self._tools = {one.name: one for one in tools}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tool")
        self._under_way: dict[str, Future[None]] = {}

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def heed(self, event: run_pb2.RunEvent) -> None:
        """Begin to answer a call, where the event tells one of these tools, and raise what answering another failed of.

        Raises:
            RlmError: an answer could not be given to the server.
        """
        if event.HasField("tool_call_requested") and event.tool_call_requested.name in self._tools:
            call = event.tool_call_requested
            self._under_way[call.call_id] = self._pool.submit(self._answer, call)
        for call_id, answering in list(self._under_way.items()):
            if answering.done():
                self._under_way.pop(call_id).result()

    def _answer(self, call: run_pb2.ToolCallRequested) -> None:
        with suppress(AlreadyExists, FailedPrecondition):  # another client was first, or nobody waits any more
            try:
                result = called(self._tools[call.name].function, json.loads(call.arguments_json))
            except Exception as error:
                self._fail(call, f"{type(error).__name__}: {error}")
                return
            try:
                self._submit(self._run_id, call.call_id, result)
            except (InvalidArgument, TypeError, ValueError) as error:  # it is no JSON, or too large
                self._fail(call, f"the tool returned what cannot be sent: {error}")

    def _fail(self, call: run_pb2.ToolCallRequested, words: str) -> None:
        self._submit(self._run_id, call.call_id, error=words[:_MAX_ERROR])


def called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function, which may be async, and return what it returns."""
    result = function(**arguments)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def unanswered(events: Iterable[run_pb2.RunEvent]) -> tuple[list[run_pb2.RunEvent], int]:
    """Return the events of calls that have no answer yet, and the number of the last event of all."""
    waiting, last = dict[str, run_pb2.RunEvent](), 0
    for event in events:
        last = event.sequence
        if event.HasField("tool_call_requested"):
            waiting[event.tool_call_requested.call_id] = event
        elif event.HasField("tool_call_answered"):
            waiting.pop(event.tool_call_answered.call_id, None)
    return list(waiting.values()), last
