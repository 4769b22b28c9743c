"""Tools: functions that the caller of the program answers. Runs inside the sandbox."""

import inspect
import json

import _door
import _runner
from _requests import Request, asking
from _rlm import offered


class ToolError(RuntimeError):
    """A tool failed; the message is what it said."""


ToolError.__module__ = "__main__"  # a traceback shows it as the program knows it


def offer(tools):
    """Offer tools to the program: a function for each, by its name, and a twin to be awaited.

    tools: a JSON list of {name, description, parameters: [[name, annotation, required, default, nullable]], others}.
    """
    _door.ERRORS["ToolError"] = _runner.reserved["ToolError"] = ToolError
    for tool in json.loads(tools):
        offered(asking(_function(**tool)))


def _function(name, description, parameters, others):
    signature = inspect.Signature([_parameter(*one) for one in parameters] + ([_OTHERS] if others else []))
    omitted = {one for one, _, required, default, nullable in parameters if not (required or nullable)}

    def make(*args, **named):
        given = signature.bind(*args, **named).arguments
        given |= given.pop("others", {}) if others else {}
        sent = {key: value for key, value in given.items() if not (value is None and key in omitted)}
        return Request("tool", json.loads, name=name, arguments=_written(sent))

    make.__name__ = make.__qualname__ = name
    make.__doc__, make.__signature__, make.__module__ = description or None, signature, __name__
    return make


_OTHERS = inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD)


def _parameter(name, annotation, required, default, nullable):  # noqa: ARG001
    empty = inspect.Parameter.empty
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=empty if required else default,
        annotation=annotation or empty,
    )


def _written(arguments):
    """Write arguments as JSON."""
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError:
        raise ValueError("the arguments are nested too deep") from None


def _plain(value):
    """Return a value of numpy's, or of its kin, as JSON knows it."""
    for name in ("tolist", "isoformat"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"arguments must be JSON: str, int, float, bool, None, list or dict, not {type(value).__name__}")
