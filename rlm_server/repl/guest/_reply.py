"""What only the guest can say of a reply: which reading of a block is Python, and what `FINAL` in prose means.

Runs inside the sandbox.
"""

import ast
import warnings

import _answer
import _runner

namespace = _runner.namespace
_runner.internal.add("<_reply>")

MAGICS = 8
"""Lines of one program that are no Python but a notebook's, at most."""


def choose(programs):
    """Return the number of the first program that compiles, and the lines of it, from 0, that must be taken out.

    Lines that begin with `!` or `%` are taken out, as a notebook's. Where no program compiles it is the first as it is.
    """
    for number, program in enumerate(programs):
        lines = _compiles(program)
        if lines is not None:
            return [number, lines]
    return [0, []]


def _compiles(program):
    lines, taken = program.split("\n"), []
    while True:
        try:
            with warnings.catch_warnings(action="ignore"):
                compile("\n".join(lines), "<reply>", "exec", _runner.AWAIT)
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
            if len(taken) == MAGICS or not 0 <= number < len(lines) or lines[number].lstrip()[:1] not in ("!", "%"):
                return None
            lines[number] = lines[number][: -len(lines[number].lstrip())] + "pass"
            taken.append(number)
        except Exception:
            return None
        else:
            return taken


def final(argument):
    """Give what `FINAL(argument)` in prose says: the value of a str in quotes, or else the text as it stands.

    Raises:
        ValueError: it is an expression with variables of the program. Prose is not evaluated.
    """
    value = _argument(argument)
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        _answer.FINAL(value.value)
        return
    quote = argument[:1]
    if value is None and quote in ("'", '"') and argument[1:].endswith(quote) and argument.count(quote) == 2:
        _answer.FINAL(argument[1:-1])  # a str that goes over several lines
        return
    own = set(_own())
    named = sorted({node.id for node in ast.walk(value) if isinstance(node, ast.Name)} & own) if value else []
    if named or isinstance(value, ast.JoinedStr):
        what = f"names your variable {named[0]}" if named else "is an f-string"
        raise ValueError(
            f"FINAL(...) in plain text gives its text as it stands, and this one {what}. Call FINAL(...) in a `repl` "
            "block for the value"
            + (f", write FINAL_VAR({named[0]}) for the value of the variable" if named else "")
            + ', or FINAL("...") in plain text for these very words'
        )
    _answer.FINAL(argument)


def _argument(text):
    """Return the one argument that a text is as Python, or None: it is prose."""
    try:
        with warnings.catch_warnings(action="ignore"):
            call = ast.parse(f"_({text}\n)", mode="eval").body
    except Exception:
        return None
    values = [*call.args, *(keyword.value for keyword in call.keywords)] if isinstance(call, ast.Call) else ()
    return values[0] if len(values) == 1 else None


def final_var(name):
    """Give the value of the variable of this name.

    Raises:
        NameError: there is none.
    """
    if name not in {*_own(), "answer", "context"}:
        there = ", ".join([own for own in _own() if own[0] != "_" and not callable(namespace[own])][-40:])
        raise NameError(
            f"FINAL_VAR in plain text takes the name of a variable, and there is none called {name[:60]}. "
            + (f"There are: {there}" if there else "There are none yet")
        )
    value = namespace[name]
    if name == "answer" and isinstance(value, dict):
        value = value.get("content")
    _answer.FINAL(value)


def _own():
    """Return the names that the program has set, in their order."""
    return [name for name in namespace if name not in _runner.first_names and name not in _runner.reserved]
