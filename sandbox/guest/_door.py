"""The guest's side of the door. Runs inside the sandbox; nothing outside relies on it."""

import builtins
import json

import _host


class LimitExceeded(Exception):
    """A limit of the sandbox or of the budget was reached; the message names it."""


class ModelError(RuntimeError):
    """A model did not answer; `kind` says in one word why, such as `timed_out` or `refused`."""

    def __init__(self, message="", kind=""):
        super().__init__(message)
        self.kind = kind


class AnswerCut(ModelError):
    """A model's answer was cut off before it was of use."""


for _named in (LimitExceeded, ModelError, AnswerCut):
    _named.__module__ = "__main__"  # a traceback shows them as the program knows them

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

ERRORS = {"LimitExceeded": LimitExceeded, "ModelError": ModelError, "AnswerCut": AnswerCut}
"""Exceptions that the program knows by these names."""


def failure(error, otherwise=RuntimeError):
    """Make the exception that an error of the host's names; `otherwise` where it is none of those that are known."""
    known = ERRORS.get(error["type"], otherwise)
    return known(error["message"], error.get("kind", "")) if issubclass(known, ModelError) else known(error["message"])


def call(op, **arguments):
    """Ask the host for `op`. Return its answer, or raise the error it replies with."""
    frame = _frame(op, arguments) if arguments else _encode({"op": op}).encode()
    return value(_decode(_host.call(frame).decode()))


LONG = 256
"""Characters from which on a text stands behind the head of its request."""

SHORT = 16
"""The same, where the head would be too large otherwise."""

HEAD = 1 << 20
"""Bytes that the host takes as a head."""


def _frame(op, arguments):
    arguments["op"] = op
    for argument in arguments.values():
        if type(argument) is list or (isinstance(argument, str) and len(argument) >= LONG):
            break
    else:
        return _bytes(_encode(arguments))
    for long in LONG, SHORT:
        texts = []
        head = _encode({name: _apart(argument, long, texts) for name, argument in arguments.items()})
        if head.count('{"":') != len(texts):  # an argument looks like the place of a text
            return _bytes(_encode(arguments))
        head = _bytes(head)
        if len(head) <= HEAD:
            break
    return b"".join([head, b"\0", *texts]) if texts else head


def _apart(argument, long, texts):
    if isinstance(argument, str) and len(argument) >= long:
        texts.append(_bytes(argument))
        return {"": len(texts[-1])}
    return [_apart(item, long, texts) for item in argument] if type(argument) is list else argument


def _bytes(text):
    return text.encode("utf-8", "surrogatepass")  # the host refuses surrogates


def start(op, **arguments):
    """Ask the host for `op` without waiting. Return the number under which `wait` returns the reply."""
    return call(op, later=True, **arguments)


def wait(seconds=None):
    """Wait until a started request has ended, at most so many seconds. Return those ended: [[number, reply], ...]."""
    return call("sandbox.wait", seconds=seconds)


def value(reply):
    """Return the value in a reply, or raise the error in it."""
    if "error" not in reply:
        return reply["ok"]
    error = reply["error"]
    name, message = error["type"], error["message"]
    if name in ERRORS:
        raise failure(error)
    known = getattr(builtins, name, RuntimeError)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        known, message = RuntimeError, f"{name}: {message}"
    raise known(message)
