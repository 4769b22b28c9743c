"""`answer` and its kin: the program says what its answer is, and when it is ready. Runs inside the sandbox."""

import _door
import _runner
from _rlm import offered

namespace = _runner.namespace


@offered
def FINAL(value):
    """Give the answer."""
    _give(value)


@offered
def FINAL_VAR(name):
    """Give the value of the variable of this name (or the value itself) as the answer."""
    _give(namespace[name] if isinstance(name, str) and name in namespace else name)


@offered
def SUBMIT(*values, **named):
    """Give the answer: one value, or several by name."""
    _give(values[0] if len(values) == 1 and not named else named or values)


def _give(value):
    namespace["answer"] = {"content": value, "ready": True}


def _tell():
    """Tell the host the answer after a turn, where it is another than before; make `answer` a dict again."""
    answer = namespace.get("answer")
    if not isinstance(answer, dict):
        answer = namespace["answer"] = {"content": "" if answer is None else answer, "ready": False}
    content, ready = answer.get("content"), bool(answer.get("ready"))
    content = "" if content is None else content if isinstance(content, str) else repr(content)
    if (ready or content) and (content, ready) != _last[0]:  # of anything else than a text, its truth says nothing
        try:
            _door.call("answer", content=content, ready=ready)
        except Exception:  # it is too long, and the next turn is not to be told so again
            namespace["answer"] = {"content": "", "ready": False}
            raise
        _last[0] = (content, ready)


_last = [None]
_runner.after.append(_tell)
