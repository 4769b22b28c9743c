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
    """Ask the host for `op` and return its answer, or raise what it says."""
    arguments["op"] = op
    return value(_decode(_host.call(_encode(arguments).encode()).decode()))


def start(op, **arguments):
    """Ask the host for `op` and return the number under which `wait` will tell of its reply."""
    return call(op, later=True, **arguments)


def wait(seconds=None):
    """Wait until something that was started has ended, at most so long; return what has: [[number, reply], ...]."""
    return call("sandbox.wait", seconds=seconds)


def value(reply):
    """Return what a reply grants, or raise what it says."""
    if "error" not in reply:
        return reply["ok"]
    name, message = reply["error"]["type"], reply["error"]["message"]
    known = ERRORS.get(name) or getattr(builtins, name, RuntimeError)
    if not (isinstance(known, type) and issubclass(known, Exception)):
        known, message = RuntimeError, f"{name}: {message}"
    raise known(message)
