"""Puts small functions of a WebAssembly module in the place of calls of them.

CPython's files are compiled one by one. So functions of a few instructions that much of it calls, such as those that
begin and end an object's life, are calls in WebAssembly, and each looks whether the stack has room. Wasmtime could
inline, but then polls of several functions would be in one, where it may take them for the same. So it is done here,
before polls are put in.

A call becomes a block with the function's body. The function's parameters and variables get places among those of the
caller, which are set as a call sets them. Where it returns, it leaves the block. Only functions that hold no loop, no
list of branches, no exceptions and at most one call are taken. What calls nothing twice calls nothing twice afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sandbox.vm.instructions import (
    CALL,
    CALLS,
    LOOP,
    ModuleRefused,
    number,
    skip_locals,
    skip_to_call,
    skip_types,
    step,
)
from sandbox.vm.safepoints import bodies, imported_functions, sections, written

MOST_BYTES = 160
"""Of a function that is put into others."""
MOST_PLACES = 150
"""In which a function is called, so that the code stays about as large as it was."""
FEWEST_BYTES = 16
"""A function so small is put wherever it is called."""
MOST_VARIABLES = 32
"""Of a function that is put into others, its parameters included."""

_TYPES, _IMPORTS, _FUNCTIONS, _CODE = 1, 2, 3, 10
_FUNCTION_TYPE, _NO_RESULT = 0x60, b"\x40"
_ZERO = {
    b"\x7f": b"\x41\x00", b"\x7e": b"\x42\x00", b"\x7d": b"\x43" + bytes(4), b"\x7c": b"\x44" + bytes(8),
    b"\x7b": b"\xfd\x0c" + bytes(16),
}  # fmt: skip
"""The types of numbers, and what pushes the zero of each."""
_BLOCK, _IF, _END, _BRANCH, _RETURN, _SET = 0x02, 0x04, 0x0B, 0x0C, 0x0F, b"\x21"
_OF_VARIABLES = (0x20, 0x21, 0x22)
_NOT_TAKEN = frozenset({LOOP, 0x08, 0x0A, 0x0E, 0x1F})
"""A `loop`, `throw`, `throw_ref`, `br_table` and `try_table`."""


@dataclass(frozen=True, slots=True)
class _Signature:
    """The types of a function's parameters and results."""

    parameters: tuple[bytes, ...]
    results: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Small:
    """A function that can stand in the place of calls of it."""

    parameters: int
    variables: tuple[bytes, ...]
    """The types of its parameters, and of its other variables."""
    block: bytes
    """The type of the block that it becomes."""
    parts: tuple[bytes | tuple[int, int], ...]
    """Its body. Of an instruction for a variable, that and the variable."""
    size: int


def inline(module: bytes) -> bytes:
    """Return the module with small functions in the place of calls. Takes time linear in its size.

    Raises:
        ModuleRefused: it is malformed, or has an instruction that is not known, or types that are none of functions.
    """
    found = {kind: (start, end) for kind, _, start, end in sections(module)}
    if _CODE not in found:
        return module
    first = imported_functions(module, *found[_IMPORTS]) if _IMPORTS in found else 0
    code = list(bodies(module, *found[_CODE]))
    signatures = list(_signatures(module, *found[_FUNCTIONS], list(_types(module, *found[_TYPES]))))
    if len(signatures) != len(code):
        raise ModuleRefused(f"the module has {len(signatures)} functions, and code of {len(code)}")
    small = dict(_all_small(module, code, signatures, first))
    calls = [list(_calls(module, start, end, small)) for _, start, end in code]
    places = Counter(call.function for of_one in calls for call in of_one)
    chosen = {one for one, times in places.items() if times <= MOST_PLACES or small[one].size <= FEWEST_BYTES}
    parts = [written(len(code))]
    for me, (head, start, after) in enumerate(code):
        wanted = [call for call in calls[me] if call.function in chosen and call.function != first + me]
        if wanted:
            body = _with_bodies(module, start, after, len(signatures[me].parameters), wanted, small)
            parts += [written(sum(map(len, body))), *body]
        else:
            parts.append(module[head:after])
    out = [module[:8]]
    for kind, head, _, end in sections(module):
        out += [module[head:end]] if kind != _CODE else [bytes([_CODE]), written(sum(map(len, parts))), *parts]
    return b"".join(out)


# ---- what can be put into others ---------------------------------------------------------------------------------


def _signatures(module: bytes, at: int, end: int, types: Sequence[_Signature]) -> Iterator[_Signature]:
    """Yield the signature of each function that the module itself has."""
    count, at = number(module, at, end)
    for _ in range(count):
        index, at = number(module, at, end)
        if index >= len(types):
            raise ModuleRefused(f"a function has type {index}, and there are {len(types)}")
        yield types[index]


def _types(module: bytes, at: int, end: int) -> Iterator[_Signature]:
    count, at = number(module, at, end)
    for _ in range(count):
        if at >= end or module[at] != _FUNCTION_TYPE:
            raise ModuleRefused(f"the type at byte {at} of the module is none of a function")
        parameters, at = _values(module, at + 1, end)
        results, at = _values(module, at, end)
        yield _Signature(parameters, results)


def _values(module: bytes, at: int, end: int) -> tuple[tuple[bytes, ...], int]:
    count, at = number(module, at, end)
    values = []
    for _ in range(count):
        after = skip_types(module, at, end, 1)
        values.append(module[at:after])
        at = after
    return tuple(values), at


def _all_small(
    module: bytes, code: Sequence[tuple[int, int, int]], signatures: Sequence[_Signature], first: int
) -> Iterator[tuple[int, _Small]]:
    for function, ((_, start, end), signature) in enumerate(zip(code, signatures, strict=True), first):
        taken = _small(module, start, end, signature) if end - start <= MOST_BYTES else None
        if taken is not None:
            yield function, taken


def _small(module: bytes, start: int, end: int, signature: _Signature) -> _Small | None:
    """Return a function as it can stand in the place of a call, if it can."""
    variables = [*signature.parameters, *_variables(module, start, end)]
    if len(variables) > MOST_VARIABLES or len(signature.results) > 1:
        return None
    if not {*variables, *signature.results} <= _ZERO.keys():
        return None
    at = since = skip_locals(module, start, end)
    parts: list[bytes | tuple[int, int]] = []
    depth = calls = 0
    while at < end:
        code, after = module[at], step(module, at, end)
        calls += code in CALLS
        if code in _NOT_TAKEN or calls > 1:
            return None
        depth += (code in (_BLOCK, _IF)) - (code == _END)
        if code in _OF_VARIABLES:
            variable, _ = number(module, at + 1, end)
            if variable >= len(variables):
                return None
            parts += [module[since:at], (code, variable)]
            since = after
        elif code == _RETURN:
            parts += [module[since:at], bytes([_BRANCH]) + written(depth)]
            since = after
        at = after
    parts.append(module[since:end])
    block = signature.results[0] if signature.results else _NO_RESULT
    return _Small(len(signature.parameters), tuple(variables), block, tuple(parts), end - start)


def _variables(module: bytes, at: int, end: int) -> Iterator[bytes]:
    """Yield the type of each local variable; of very many, only so many that they are seen to be too many."""
    groups, at = number(module, at, end)
    for _ in range(groups):
        count, at = number(module, at, end)
        after = skip_types(module, at, end, 1)
        yield from [module[at:after]] * min(count, MOST_VARIABLES + 1)
        at = after


# ---- putting it there --------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """A call from `at` to `after` in the module."""

    at: int
    after: int
    function: int


def _calls(module: bytes, start: int, end: int, of: Container[int]) -> Iterator[_Call]:
    """Yield a function's calls of these functions."""
    at = skip_locals(module, start, end)
    while (at := skip_to_call(module, at, end)) < end:
        after = step(module, at, end)
        if module[at] == CALL:
            function, _ = number(module, at + 1, end)
            if function in of:
                yield _Call(at, after, function)
        at = after


def _with_bodies(
    module: bytes, start: int, end: int, parameters: int, calls: Sequence[_Call], small: Mapping[int, _Small]
) -> list[bytes]:  # fmt: skip
    """Return a function's body in parts, with those of others in the place of calls."""
    groups, at = number(module, start, end)
    since = skip_locals(module, start, end)
    declared = module[at:since]
    own = parameters
    for _ in range(groups):
        count, at = number(module, at, end)
        own, at = own + count, skip_types(module, at, end, 1)
    places: dict[tuple[bytes, int], int] = {}  # of a type's first variable, second and so on
    parts: list[bytes] = []
    for call in calls:
        one, used, where = small[call.function], Counter[bytes](), list[bytes]()
        for kind in one.variables:
            where.append(written(places.setdefault((kind, used[kind]), own + len(places))))
            used[kind] += 1
        parts.append(module[since : call.at])
        parts += [_SET + place for place in reversed(where[: one.parameters])]
        parts += [
            _ZERO[kind] + _SET + place
            for kind, place in zip(one.variables[one.parameters :], where[one.parameters :], strict=True)
        ]
        parts += [bytes([_BLOCK]), one.block]
        parts += [part if isinstance(part, bytes) else bytes([part[0]]) + where[part[1]] for part in one.parts]
        since = call.after
    added = [b"\x01" + kind for kind, _ in places]
    return [written(groups + len(added)), declared, *added, *parts, module[since:end]]
