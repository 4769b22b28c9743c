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


for _stream in (sys.stdout, sys.stderr):  # a line is seen when it is printed, not when the turn ends
    _stream.reconfigure(line_buffering=True)

_runner.reserved["context"] = ""  # until there is one
_runner.reserved.update(_door.ERRORS)  # code catches them by their names
_runner.internal.add("<_rlm>")
