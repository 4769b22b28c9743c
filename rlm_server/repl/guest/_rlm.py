"""What the stubs of functions share: they offer a name to the program, and read replies. Runs inside the sandbox."""

import sys

import _door
import _loop
import _runner


def offered(function):
    """Offer a function to the program by its name, and, where it asks the host, a twin to be awaited.

    The names are put back before every turn. Tracebacks leave out the frames of the stub's module.
    """
    offers = [function, _loop.awaitable(function)] if hasattr(function, "__request__") else [function]
    _runner.reserved.update((offer.__name__, offer) for offer in offers)
    _runner.internal.add(f"<{function.__module__}>")
    return function


def text(name, value):
    """Return an argument that must be a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be str, not {type(value).__name__}")
    return value


def only(replies):
    """Return the value of the one slot of a reply, or raise what it says."""
    if "error" in replies[0]:
        raise _failure(replies[0]["error"])
    return _noted(replies[0])


def slots(return_exceptions, replies):
    """Return the values of all slots of a reply; one that failed gives its error as text, or as an exception."""
    values = []
    for reply in replies:
        if "error" not in reply:
            values.append(_noted(reply))
        elif return_exceptions:
            values.append(_failure(reply["error"]))
        else:
            values.append(f"Error: {reply['error']['message']}")
    return values


def _failure(error):
    kind = _door.ERRORS.get(error["type"], RuntimeError)
    return kind(error["message"])


def _noted(reply):
    if reply.get("note"):
        print(f"[{reply['note']}]")
    return reply["ok"]


for _stream in (sys.stdout, sys.stderr):  # a line is seen when it is printed, not when the turn ends
    _stream.reconfigure(line_buffering=True)

_runner.reserved["context"] = ""  # until there is one
_runner.internal.add("<_rlm>")
