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
    """Print the program's variables with type and size, and return what was printed."""
    lines = [f"{name}: {kind}" + (f" of length {n}" if n >= 0 else "") for name, kind, n in _runner.variables()]
    _runner.shown[0] = listed = "\n".join(lines) or "no variables yet"
    print(listed)
    return listed
