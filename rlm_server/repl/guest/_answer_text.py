"""What becomes of an answer's value: a text. Runs inside the sandbox.

Nothing of an unknown type is asked how it is written: `repr` may elide, show an address, or fail.
"""

import collections
import json
import numbers
import sys
import types

import _runner

MOST_NAME = 60
"""Characters of a type's name in a message."""


def text_of(value):
    """Return an answer as a text.

    A str is taken as it is. A number, a bool and None are written as Python writes them, a table as CSV with all its
    rows, and all else that JSON can hold as JSON.

    Raises:
        TypeError: it is none of these, or holds something that is none; the message says what to do.
        ValueError: it contains itself, or is nested too deep.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, numbers.Number) or _is_scalar(value):
        return str(value)
    if isinstance(value, (_class("pandas", "DataFrame"), _class("pandas", "Series"))):
        return _table(value)
    if not isinstance(value, dict | list | tuple):
        value = _plain(value, "be")
    return _json(value)


def _class(library, name):
    """Return a class of a library; where that is not loaded, one that nothing is of."""
    found = getattr(sys.modules.get(library), name, None)
    return found if isinstance(found, type) else _Nothing


class _Nothing:
    pass


def _is_scalar(value):
    """Whether it is a number, time or truth of numpy's, or what pandas has for a missing one."""
    if isinstance(value, _class("numpy", "generic")):
        return value.dtype.kind in "biufcmM"
    return type(value).__name__ in ("NAType", "NaTType") and type(value).__module__.startswith("pandas.")


def _table(table):
    """Write a table as CSV. An index that only counts the rows is left out, and so is the head of a nameless series."""
    index = not (isinstance(table.index, sys.modules["pandas"].RangeIndex) and table.index.name is None)
    head = {"header": False} if table.ndim == 1 and table.name is None else {}
    return table.to_csv(index=index, lineterminator="\n", **head).removesuffix("\n")


def _json(value):
    try:
        try:
            return _encode(value)
        except TypeError:
            return _encode(_with_plain_keys(value))
    except RecursionError:
        raise ValueError("the answer is nested too deep for JSON") from None
    except ValueError as error:
        circular = str(error).startswith("Circular")
        raise (ValueError("the answer contains itself, so it cannot be written") if circular else error) from None


def _with_plain_keys(value):
    """Return the same with keys that JSON can hold, where those of numpy stand."""
    if isinstance(value, dict):
        return {_key(key): _with_plain_keys(one) for key, one in value.items()}
    return [_with_plain_keys(one) for one in value] if isinstance(value, list | tuple) else value


def _key(key):
    if key is None or isinstance(key, str | int | float):
        return key
    if _is_scalar(key):
        return str(key)
    raise TypeError(f"an answer cannot hold a dict with keys of the type {_named(key)}: make them str")


def _plain(value, how="hold"):
    """Return something of a library as what JSON can hold."""
    if isinstance(value, _class("numpy", "generic")) and value.dtype.kind in "biuf":
        narrow = value.dtype.kind == "f" and value.dtype.itemsize < 8  # 0.1, not 0.10000000149011612
        return float(str(value)) if narrow else value.item()
    if _is_scalar(value):
        return None if str(value) in ("<NA>", "NaT") else str(value)
    if isinstance(value, _class("numpy", "ndarray")):
        return value.astype(str).tolist() if value.dtype.kind in "mM" else value.tolist()
    if isinstance(value, (_class("pandas", "Index"), _class("pandas.api.extensions", "ExtensionArray"))):
        return list(value)
    raise TypeError(f"an answer cannot {how} {_named(value)}: {_advice(value)}")


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def _named(value):
    name = type(value).__name__[:MOST_NAME]
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _advice(value):
    if isinstance(value, set | frozenset):
        return "make it a list with sorted(value) or list(value)"
    if isinstance(value, bytes | bytearray | memoryview):
        return "make it a str with value.decode(), or bytes(value).decode()"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type):
        return "call it, and give what it returns"
    if isinstance(value, types.ModuleType):
        return "give a value, not a module"
    if isinstance(value, collections.abc.Coroutine | collections.abc.Awaitable):
        return "await it, and give what that returns"
    if isinstance(value, _class("pandas", "DataFrame")):
        return 'make it a list with value.to_dict("records"), or give the table alone'
    if isinstance(value, _class("pandas", "Series")):
        return "make it a dict or a list with value.to_dict() or value.to_list()"
    if hasattr(type(value), "__dataclass_fields__"):
        return "make it a dict with dataclasses.asdict(value)"
    if isinstance(value, collections.abc.Mapping):
        return "make it a dict with dict(value)"
    if isinstance(value, collections.abc.Iterable):
        return "make it a list with list(value)"
    return "make it a str, a number, a list or a dict, with str(value) for example"


_runner.internal.add("<_answer_text>")
