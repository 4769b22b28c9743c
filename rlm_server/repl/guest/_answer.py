"""`answer` and its kin: the program says what its answer is, and when it is ready. Runs inside the sandbox."""

import ast
import linecache
import sys

import _answer_text
import _door
import _runner
from _rlm import offered

namespace, reserved = _runner.namespace, _runner.reserved

MOST_SHOWN = 60
"""Characters of a name in a message."""
MOST_LISTED = 40
"""Variables that a message lists, the newest."""

EMPTY = "the answer is empty, so the run goes on; give one that says something, if only that nothing was found"


@offered
def FINAL(value):
    """Give the answer."""
    _give(value)


@offered
def FINAL_VAR(name):
    """Give the value of the variable of this name as the answer; anything else than a text in quotes is the value."""
    caller = sys._getframe(1)
    written = _written(caller) if isinstance(name, str) else False
    if written is False:  # an expression: its value is meant, whatever it is
        _give(name)
        return
    _give(_variable(name.strip().strip("\"'`").strip(), caller.f_locals))


@offered
def SUBMIT(*values, **named):
    """Give the answer: one value, or several by name."""
    if not (values or named):
        raise TypeError("SUBMIT needs the answer: SUBMIT(value)")
    _give(values[0] if len(values) == 1 and not named else named or values)


def _give(value):
    if value is reserved["answer"] or _is_answer(value):
        value = dict.get(value, "content")
    content = _said(_answer_text.text_of(value))
    own = namespace.get("answer")
    if not _is_answer(own):
        own = reserved["answer"]
    own["content"], own["ready"] = content, True


def _said(content):
    """Return a text that says something."""
    if not content.strip():
        raise ValueError(EMPTY)
    return content


def _written(caller):
    """Whether the argument of the call that a frame is making is written as a text. None where that is not known."""
    try:
        line, last, start, end = list(caller.f_code.co_positions())[caller.f_lasti // 2]
        lines = linecache.cache[caller.f_code.co_filename][2][line - 1 : last]
        source = [one.encode() for one in lines]
        source[-1] = source[-1][:end]
        source[0] = source[0][start:]
        call = ast.parse(b"".join(source).decode().strip(), mode="eval").body
        if not isinstance(call, ast.Call) or len(call.args) + len(call.keywords) != 1:
            return None
        argument = call.args[0] if call.args else call.keywords[0].value
        return isinstance(argument, ast.Constant | ast.JoinedStr)
    except Exception:
        return None


def _variable(name, local):
    """Return the value of a variable. Of a name of the server's, it is what the program gave it, if it did."""
    for there in (local, namespace):
        if name in there and there[name] is not reserved.get(name, _runner.kept):
            return there[name]
    if name == "answer" and dict.get(reserved["answer"], "content"):
        return reserved["answer"]
    if name in _runner.kept:
        return _runner.kept[name]
    if name in namespace:
        return namespace[name]
    shown = name if len(name) <= MOST_SHOWN else name[:MOST_SHOWN] + "..."
    there = ", ".join(listed for listed, _, _ in _runner.variables()[-MOST_LISTED:]) or "none yet"
    advice = "" if name.isidentifier() else "; FINAL(...) takes a text itself"
    raise NameError(f"there is no variable called {shown!r}. The variables are: {there}{advice}")


# ---- what the host is told -------------------------------------------------------------------------------------------


def _is_answer(value):
    return isinstance(value, dict) and all(dict.__contains__(value, key) for key in ("content", "ready"))


def _tell(ended):
    """Tell the host the answer after a turn. It is ready only where the code ran to its end, and it has content."""
    own = reserved["answer"]
    ready = bool(_taken(own, "ready"))
    if ready and not ended:
        ready = False
        if not (_last[0] and _last[0][1]):  # in a session, which no answer ends, it may be set from an earlier turn
            _runner.say('answer["ready"] is False again: the block that set it did not run to its end')
    try:
        content = dict.get(own, "content")
        content = "" if content is None else _answer_text.text_of(content)
        if ready:
            _said(content)
    except Exception:
        if ready:
            raise
        return  # a draft that is no text yet
    if not (ready or (content.strip() and (content, ready) != _last[0])):
        return
    try:
        _door.call("answer", content=content, ready=ready)
    except Exception:  # it is too long, and the next turn is not to be told so again
        own["content"] = ""
        raise
    own["ready"], _last[0] = ready, (content, ready)


def _taken(own, key):
    """Return a value of a dict, and put False in its place."""
    value = dict.get(own, key, False)
    dict.__setitem__(own, key, False)
    return value


_last = [None]
reserved["answer"] = {"content": "", "ready": False}
_runner.adopts["answer"] = _is_answer
_runner.after.append(_tell)
