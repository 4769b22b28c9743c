"""Runs turns inside the sandbox and reports how they ended. Nothing outside relies on it for safety."""

import ast
import builtins
import contextlib
import inspect
import linecache
import random
import sys
import traceback

import _door
import _reactor

reserved = {}
"""Names put back into the program's namespace after every turn, and before it."""

adopts = {}
"""Of reserved names, functions that tell whether a value of the program's may stay in place of what was reserved."""

before = []
"""Functions called before every turn."""

forgetting = []
"""Functions called once an image is made: each forgets the turns that made it."""

after = []
"""Functions called after every turn that was not stopped, with whether its code ran to its end."""

leftovers = []
"""Functions called once, before the next turn: each gives up what an earlier turn has left under way."""

complete = None
"""Runs a coroutine to its end and returns its value."""

spare = [bytearray(1 << 18)]
"""Memory given up when a program has used all: there must be some left to say so."""

namespace = sys.modules["__main__"].__dict__
first_names = frozenset(namespace)
first_builtins = dict(builtins.__dict__)
modules = sys.modules
first_modules = dict(modules)
seen_modules = {}
"""The modules that were there when it was last made sure that the first ones are."""


commands = {}
"""What the host may want, by its name."""


def enter(frame):
    """Carry out a command of the host's, and return what it returns, or 0.

    A frame is a line with the command's name and words, and then its text.
    """
    head, _, text = frame.partition(b"\n")
    name, *words = head.decode().split()
    return commands[name](text.decode("utf-8", "surrogatepass"), *words) or 0


def run(code, number, state, proof):
    """Run one turn's code. If the state is `fresh`, it was just restored, and entropy is renewed first.

    If it is not `going` on where the host knows it, the host is told of the variables in any case.

    The number `proof` is returned only where the code ran to its end. Without it, the host takes the turn for damaged.
    """
    if state == "fresh":
        renew_entropy()
    if state != "going":
        told.clear()
    mend()
    for function in before:
        with contextlib.suppress(Exception):
            function()
    if not spare:
        with contextlib.suppress(MemoryError):
            spare.append(bytearray(1 << 18))
    error = ran = None
    try:
        ran = execute(code, f"<turn {number}>", proof)
    except BaseException as raised:
        error = failure(raised)
    for step in (put_back_streams, put_back_names, *after):
        try:
            step(error is None)
        except BaseException as raised:
            error = failure(raised) if error is None else error
    try:
        report(error)
    except Exception:  # the program has broken what a report needs
        mend()
        report(error)
    return int(ran) if error is None and ran is not None else 0


def failure(raised):
    """Describe what ended a turn. Where it is a lack of memory, some is given up for that."""
    if isinstance(raised, MemoryError):
        spare.clear()
    return describe(raised)


told = []
"""The variables the host was told of last."""


def report(error):
    """Flush the streams, and report to the host how the turn ended if that differs from the last report."""
    put_back_streams()
    now = variables()
    if error is None and told and told[0] == now:
        return
    _door.call("sandbox.report", error=error, variables=now)
    told[:] = [now]


def mend():
    """Put back what a careless program may have replaced: built-ins, modules, reserved names, what runs code."""
    if not own.items() <= globals().items():
        globals().update(own)
    if not same(builtins.__dict__, first_builtins):
        builtins.__dict__.update(first_builtins)
    if not same(modules, seen_modules):
        if not first_modules.keys() <= modules.keys():
            modules.update(first_modules | modules)
        seen_modules.clear()
        seen_modules.update(modules)
    sys.modules = modules
    namespace.update(reserved)
    namespace["__builtins__"] = builtins
    while leftovers:
        with contextlib.suppress(BaseException):
            leftovers.pop()()


def same(now, then):
    """Whether two dicts hold the same. Something that cannot be compared is other than it was."""
    try:
        return now == then
    except BaseException:
        return False


kept = {}
"""What the program made of reserved names, by these: the last value of each."""


def put_back_names(_ended=True):
    """Put back the reserved names that the program used for something else. Keep its values, and say where."""
    for name, value in list(reserved.items()):
        if name not in namespace:
            namespace[name] = value
        elif (other := namespace[name]) is not value:
            if name in adopts and adopts[name](other):
                reserved[name] = other
            else:
                namespace[name] = value
                keep(name, other)


def keep(name, value):
    """Keep a value in a dict that the program finds, and say where."""
    kept[name] = value
    place, number = "kept", 1
    while namespace.get(place, kept) is not kept:  # the program has a variable of this name
        place, number = f"kept_{number}", number + 1
    namespace[place] = kept
    say(f'{name} is the server\'s name and is put back; what your code gave that name is in {place}["{name}"]')


def say(words):
    """Tell the program's author something, beside what the program has printed."""
    streams["stderr"].write(f"[{words}]\n")


streams = {"stdout": sys.stdout, "stderr": sys.stderr}
"""What a program prints to."""


def put_back_streams(_ended=True):
    """Flush the streams, and put them back where the program replaced them. One that is broken is made anew."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        own, now = streams[name], getattr(sys, name, None)
        if now is not own:
            with contextlib.suppress(BaseException):
                now.flush()
        try:
            own.flush()
        except Exception:
            own = streams[name] = open(  # noqa: SIM115
                fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
            )
        if now is own:
            continue
        setattr(sys, name, own)
        try:
            below = now.buffer
        except BaseException:
            below = None
        if below is not None and below is own.buffer:  # a wrapper of the stream would close it, when it is dropped
            with contextlib.suppress(BaseException):
                now.detach()
        elif now is not None and not is_closed(now):
            keep(f"sys.{name}", now)


def is_closed(stream):
    """Whether something that was a stream cannot be used any more."""
    try:
        return bool(stream.closed)
    except BaseException:
        return False


sources = {}
"""Turns whose code can be shown in a traceback."""


def execute(code, filename, proof):
    """Run code as the REPL does: the value of a last expression is shown. Return `proof` once all of it has run."""
    sources[filename] = linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    if len(sources) > 100:
        oldest = next(iter(sources))
        del sources[oldest]
        linecache.cache.pop(oldest, None)
    parts = parts_of(code, filename)
    if not parts:
        raise RuntimeError(NOT_RUN)
    value = None
    for part in parts:
        if part.co_flags & inspect.CO_COROUTINE:
            left = list(parts)
            value = complete(awaited(left))
            if left:
                raise RuntimeError(NOT_RUN)
            break
    else:
        for part in parts:
            value = eval(part, namespace)
    if value is not None and value is not shown[0]:
        print(repr(value))
    shown[0] = None
    return proof


shown = [None]
"""A value that was printed already: as that of a last expression it is not shown once more."""


NOT_RUN = "the code did not run to its end: an earlier turn has replaced what runs it"


def parts_of(code, filename):
    """Compile code in two parts: the statements and, where it ends in an expression, that expression."""
    body, _, last = code.rpartition("\n")
    if last and not last[0].isspace():
        with contextlib.suppress(
            SyntaxError
        ):  # the last line mostly is an expression, and trying that takes half the time
            expression = compile("\n" * (body.count("\n") + 1) + last if body else last, filename, "eval", AWAIT)
            return [compile(body, filename, "exec", AWAIT), expression] if body else [expression]
    tree = compile(code, filename, "exec", ast.PyCF_ONLY_AST)
    end = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    parts = [compile(tree, filename, "exec", AWAIT)] if tree.body or end is None else []
    if end is not None:
        parts.append(compile(ast.Expression(end.value), filename, "eval", AWAIT))
    return parts


AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


async def awaited(left):
    """Run the parts of code that uses `await`, taking each from the list, and return the value of the last."""
    value = None
    while left:
        part = left.pop(0)
        value = eval(part, namespace)
        if part.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def describe(raised):
    """Format what was raised, with the frames of the program's own code only."""
    try:
        report = traceback.TracebackException.from_exception(raised, limit=-50)
        for part in [report, report.__cause__, report.__context__, *(report.exceptions or ())]:
            if part is not None:
                own = [frame for frame in part.stack if frame.filename not in internal]
                part.stack = traceback.StackSummary.from_list(own)
        shown = "".join(report.format())
        message = str(raised)[:4000]
    except BaseException as second:
        message, shown = f"(and {type(second).__name__} while showing it)", ""
    return {"type": plain(type(raised).__name__), "message": plain(message), "traceback": plain(shown[-15000:])}


def plain(text):
    """Return text that can be encoded: lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


internal = {
    "<_runner>", "<_door>", "<_requests>", "<_threads>", "<_loop>", "<_reactor>", "<reactor>", "<string>", "<stdin>",
}  # fmt: skip
"""Files that tracebacks leave out."""


def variables():
    """List the program's own names: [name, type, length or -1], the newest last."""
    listed = []
    for name, value in list(namespace.items())[-400:]:
        if name in first_names or name in reserved or name.startswith("_") or type(value).__name__ == "module":
            continue
        if value is kept:
            continue
        kind = str if isinstance(value, str) else type(value)
        try:
            length = len(value) if kind.__module__ in _measurable else -1
        except Exception:
            length = -1
        listed.append([plain(name[:200]), plain(kind.__name__[:200]), length])
    return listed[-200:]


_measurable = {"builtins", "collections", "numpy", "pandas"}


def renew_entropy():
    """Draw new seeds. Two sessions restored from one state must not draw the same random numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None


commands["turn"] = run
own = {
    "execute": execute, "parts_of": parts_of, "awaited": awaited, "eval": eval, "compile": compile, "print": print,
}  # fmt: skip
"""What runs code, built-ins among it: a name of this module would hide one."""


def _entry(source, environ):  # noqa: ARG001
    return _enter(source)  # noqa: F821


# The host's export `turn` calls this very function object: only its code can be replaced.
_reactor._enter = enter
_reactor.turn.__code__ = _entry.__code__
