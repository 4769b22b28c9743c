"""The guest's side of the door. Runs inside the sandbox; nothing outside relies on it."""

import builtins
import json

import _host


class LimitExceeded(Exception):
    """A limit of the sandbox or of the budget was reached; the message names it."""


_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode

ERRORS = {"LimitExceeded": LimitExceeded}


def call(op, **arguments):
    """Ask the host for `op`. Return its answer, or raise the error it replies with."""
    arguments["op"] = op
    return value(_decode(_host.call(_encode(arguments).encode()).decode()))


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
    name, message = reply["error"]["type"], reply["error"]["message"]
    known = ERRORS.get(name) or getattr(builtins, name, RuntimeError)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        known, message = RuntimeError, f"{name}: {message}"
    raise known(message)
