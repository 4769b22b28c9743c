"""`count`: the program asks how often a pattern matches in its context, on the host. Runs inside the sandbox."""

import _door
from _rlm import offered
from _search import where, written


@offered
def count(pattern, documents=None, *, flags=0):
    """Return how often a regular expression matches in the context, in a text of any size: see `search`."""
    return _door.call("count", pattern=written(pattern, flags), **where(documents))
