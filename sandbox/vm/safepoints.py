"""Puts polls into a WebAssembly module, by which whatever it does can be stopped from another thread.

A poll reads a byte of page 0 of linear memory, which the module leaves unused. To stop a guest the host makes that page
unreadable, and the next poll traps. Polls stand where code may go on without end: at the head of every `loop`, and at
the head of every function that calls twice or more, as calls that each make two need no loop to take for ever.

Every poll of a function reads another byte, with an instruction that the function has no other use for. A compiler
knows that two such reads of one place with no write between them give the same, and leaves out the second, even if that
was a loop's only poll: Cranelift does.

What is read is checked as far as polls depend on it. The whole of a module is for the compiler to validate, afterwards.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from sandbox.vm.instructions import (
    CALLS,
    LOOP,
    READS,
    ModuleRefused,
    UnknownInstruction,
    number,
    skip,
    skip_locals,
    skip_types,
    step,
)

POLL_BYTES = 4096
"""Polls read bytes below this address."""
PAGE_BYTES = max(POLL_BYTES, mmap.PAGESIZE)
"""What is made unreadable, and so must be left unused."""

_HEADER = b"\0asm\1\0\0\0"
_CUSTOM, _IMPORTS, _MEMORIES, _CODE, _DATA = 0, 2, 5, 10, 11
_ORDER = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
"""In which order the sections come."""
_HARMLESS = (b"name", b"producers", b"target_features")
"""The custom sections that are kept. Others may tell where in the code something is, which would be wrong now."""
_FUNCTION, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)
"""Kinds of imports."""
_I32_CONST, _DROP, _END = 0x41, 0x1A, 0x0B


@dataclass(frozen=True, slots=True)
class Polled:
    """A module with polls."""

    module: bytes
    loops: int
    """All have a poll."""
    functions: int
    """How many functions have a poll at their head."""


def add_polls(module: bytes) -> Polled:
    """Put polls into a module, in time linear in its size.

    Raises:
        ModuleRefused: it is malformed, or has an instruction that is not known (`UnknownInstruction`), or has no memory
            whose first page is unused.
    """
    out, functions, memory, polls = [_HEADER], 0, None, (0, 0)
    for kind, head, start, end in sections(module):
        if kind == _IMPORTS:
            imports = _imports(module, start, end)
            functions = sum(imported == _FUNCTION for imported, _ in imports)
            memory = next(((at, end) for imported, at in imports if imported == _MEMORY), None)
        elif kind == _MEMORIES and memory is None:
            count, at = number(module, start, end)
            memory = (at, end) if count else None
        elif kind == _DATA:
            _check_data(module, start, end)
        if kind == _CODE:
            code, polls = _code(module, start, end, functions)
            out += [bytes([_CODE]), written(sum(map(len, code))), *code]
        elif kind != _CUSTOM or _custom_name(module, start, end) in _HARMLESS:
            out.append(module[head:end])
    if memory is None:
        raise ModuleRefused("the module has no memory, so there is nothing to poll")
    _check_memory(module, *memory)
    return Polled(b"".join(out), *polls)


# ---- sections -----------------------------------------------------------------------------------------------------


def sections(module: bytes) -> list[tuple[int, int, int, int]]:
    """Return the kind of each section, and where it, its contents and its end are.

    Raises:
        ModuleRefused: they are cut off, unknown or out of order.
    """
    if module[:8] != _HEADER:
        raise ModuleRefused("this is no WebAssembly module of version 1")
    found, at, last = [], 8, -1
    while at < len(module):
        kind = module[at]
        size, start = number(module, at + 1, len(module))
        if size > len(module) - start:
            raise ModuleRefused(f"the section at byte {at} of the module is cut off")
        if kind != _CUSTOM:
            if kind not in _ORDER or _ORDER.index(kind) <= last:
                raise ModuleRefused(f"the section of kind {kind} at byte {at} of the module is unknown or out of order")
            last = _ORDER.index(kind)
        found.append((kind, at, start, start + size))
        at = start + size
    return found


def bodies(module: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each function of a section of code, its contents and its end are.

    Raises:
        ModuleRefused: one is cut off, or something follows the last.
    """
    count, at = number(module, at, end)
    for _ in range(count):
        head = at
        size, start = number(module, at, end)
        at = start + size
        if at > end:
            raise ModuleRefused(f"the function at byte {head} of the module is cut off")
        yield head, start, at
    if at != end:
        raise ModuleRefused(f"the code ends at byte {at} of the module, and its section at {end}")


def _custom_name(module: bytes, at: int, end: int) -> bytes:
    length, at = number(module, at, end)
    return module[at : min(at + length, end)]


def imported_functions(module: bytes, at: int, end: int) -> int:
    """Return how many functions a section of imports names.

    Raises:
        ModuleRefused: it is malformed.
    """
    return sum(kind == _FUNCTION for kind, _ in _imports(module, at, end))


def _imports(module: bytes, at: int, end: int) -> list[tuple[int, int]]:
    """Return the kind of each import, and where its type is."""
    found = []
    count, at = number(module, at, end)
    for _ in range(count):
        for _name in range(2):
            length, at = number(module, at, end)
            at += length
        if at >= end:
            raise ModuleRefused("the imports are cut off")
        kind, at = module[at], at + 1
        found.append((kind, at))
        if kind == _FUNCTION:
            _, at = number(module, at, end)
        elif kind == _TABLE:
            at = _skip_limits(module, skip_types(module, at, end, 1), end)
        elif kind == _MEMORY:
            at = _skip_limits(module, at, end)
        elif kind == _GLOBAL:
            at = skip_types(module, at, end, 1) + 1
        elif kind == _TAG:
            _, at = number(module, at + 1, end)
        else:
            raise ModuleRefused(f"an import is of the unknown kind {kind}")
    return found


def _skip_limits(module: bytes, at: int, end: int) -> int:
    flags, at = number(module, at, end)
    for _ in range(1 + (flags & 1)):
        _, at = number(module, at, end)
    return at


def _check_memory(module: bytes, at: int, end: int) -> None:
    """Refuse a memory 0 without a first page, or that is shared, has 64-bit addresses or pages of another size."""
    flags, at = number(module, at, end)
    minimum, _ = number(module, at, end)
    if flags > 1:
        raise ModuleRefused(f"the module's memory is of a kind not known: its flags are {flags}")
    if minimum < 1:
        raise ModuleRefused("the module's memory may be empty, so there is nothing to poll")


def _check_data(module: bytes, at: int, end: int) -> None:
    """Refuse data that goes to the page that must be left unused, or of which one cannot say where it goes."""
    count, at = number(module, at, end)
    for i in range(count):
        flags, at = number(module, at, end)
        memory = 0
        if flags == 2:
            memory, at = number(module, at, end)
        if flags != 1:
            address, at = _address(module, at, end, i)
            if memory == 0 and address < PAGE_BYTES:
                raise ModuleRefused(f"data segment {i} goes to address {address}, and the first page must be unused")
        length, at = number(module, at, end)
        at += length
        if flags > 2 or at > end:
            raise ModuleRefused(f"data segment {i} is cut off or of an unknown kind")


def _address(module: bytes, at: int, end: int, segment: int) -> tuple[int, int]:
    """Read an address that is a single constant."""
    if at < end and module[at] == _I32_CONST:
        after = step(module, at, end)
        if after < end and module[after] == _END:
            signed = module[at + 1 : after]
            value = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(signed))
            return (value - (1 << 7 * len(signed) if signed[-1] & 0x40 else 0)) % (1 << 32), after + 1
    raise ModuleRefused(f"data segment {segment} goes to an address that is no constant")


# ---- code ---------------------------------------------------------------------------------------------------------


def _code(module: bytes, at: int, end: int, imported: int) -> tuple[list[bytes], tuple[int, int]]:
    """Return the code section with polls, in parts; and how many loops and functions have one."""
    since, parts, loops, functions = at, [], 0, 0
    for i, (head, start, after) in enumerate(bodies(module, at, end), imported):
        try:
            polls = _polls(module, start, after)
        except UnknownInstruction as error:
            raise UnknownInstruction(error.opcode, error.offset, i) from None
        if polls is not None:
            body = _with_polls(module, start, after, polls)
            parts += [module[since:head], written(sum(map(len, body))), *body]
            since, loops, functions = after, loops + len(polls.heads) - polls.at_entry, functions + polls.at_entry
    parts.append(module[since:end])
    return parts, (loops, functions)


@dataclass(frozen=True, slots=True)
class _Polls:
    """Where in a function polls go, whether the first goes to its own head, and the instruction that they read with."""

    heads: list[int]
    at_entry: bool
    read: int


def _polls(module: bytes, at: int, end: int) -> _Polls | None:
    """Return the polls that a function gets, or None where it needs none."""
    at = entry = skip_locals(module, at, end)
    heads: list[int] = []
    calls, own = 0, set[int]()
    while (at := skip(module, at, end, calls=calls < 2)) < end:
        code = module[at]
        at = step(module, at, end)
        if code == LOOP:
            heads.append(at)
        elif code in CALLS:
            calls += 1
        else:
            own.add(code)
    if calls == 2:
        heads.insert(0, entry)
    if not heads:
        return None
    read = next((code for code in READS if code not in own), None)
    if read is None or len(heads) >= POLL_BYTES:
        raise ModuleRefused(f"the function at byte {entry} of the module leaves no room for its {len(heads)} polls")
    return _Polls(heads, calls == 2, read)


def _with_polls(module: bytes, since: int, end: int, polls: _Polls) -> list[bytes]:
    """Return a function's body in parts, with its polls."""
    parts = []
    for i, head in enumerate(polls.heads):
        parts += [module[since:head], poll(i, polls.read)]
        since = head
    parts.append(module[since:end])
    return parts


@cache
def poll(index: int, read: int) -> bytes:
    """Return the poll with this number in its function: `i32.const index`, the read, `drop`."""
    address = bytes([index]) if index < 0x40 else bytes([index & 0x7F | 0x80, index >> 7])  # signed, of 7 bits each
    return bytes([_I32_CONST, *address, read, 0, 0, _DROP])


def written(value: int) -> bytes:
    """Return an unsigned number as modules have it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
