"""`budget` and `SHOW_VARS`: the program looks at what is left to it, and at its variables. Runs inside the sandbox."""

import _door
import _runner
from _rlm import offered


@offered
def budget():
    """Return what is left: usd, tokens, calls (None where not limited), turns, depth, seconds."""
    return _door.call("budget")


@offered
def SHOW_VARS():
    """Print the program's variables with type and size."""
    for name, kind, length in _runner.variables():
        print(f"{name}: {kind}" + (f" of length {length}" if length >= 0 else ""))
