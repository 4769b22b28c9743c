"""The instructions of WebAssembly 3.0 as they lie in a module's code, and how to step over them.

The tables hold what Wasmtime takes and what can be stopped. Unknown are therefore threads, the objects of prefix 0xfb,
wide arithmetic, the old form of exceptions (`try` and `catch`), and tail calls: with these, code can go round for ever
without a `loop`. (WebAssembly core specification 3.0, "Binary format", section "Instructions".)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

LOOP = 0x03
READS = (0x2C, 0x30, 0x32, 0x31)
"""Of which polls are made: i32.load8_s, i64.load8_s, i64.load16_s and i64.load8_u. Code has few of its own."""
CALL = 0x10
CALLS = frozenset({CALL, 0x11, 0x14})
"""`call`, `call_indirect` and `call_ref`."""
_BR_TABLE, _SELECT, _TRY_TABLE = 0x0E, 0x1C, 0x1F
_BULK, _VECTOR = 0xFC, 0xFD
"""Prefixes: the instruction's own number follows."""


class ModuleRefused(Exception):
    """A module is malformed, or polls cannot be put into it so that they are sure to stop it."""


class UnknownInstruction(ModuleRefused):
    """An instruction is not in the tables, or is cut off."""

    def __init__(self, opcode: str, offset: int, function: int = -1) -> None:
        super().__init__(f"function {function} has at byte {offset} of the module an instruction not known: {opcode}")
        self.opcode, self.offset, self.function = opcode, offset, function


# ---- the tables: which instructions have which immediates ---------------------------------------------------------

_32_BITS, _64_BITS = rb"[\x80-\xff]{0,4}+[\x00-\x7f]", rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_TYPE = rb"[\x63\x64]?+" + _32_BITS
"""Of a block or a value: one number, or a reference's kind and what it refers to."""
_IMMEDIATES = {
    "number": _32_BITS,
    "long": _64_BITS,
    "type": _TYPE,
    # alignment, of which bit 6 tells that a memory's number follows; and offset
    "memory": rb"(?:[\x00-\x3f]|[\x80-\xbf]\x80{0,3}+\x00|(?:[\x40-\x7f]|[\xc0-\xff]\x80{0,3}+\x00)" + _32_BITS + rb")"
    + _64_BITS,
    "byte": rb"[\x00-\xff]",
    "4 bytes": rb"[\x00-\xff]{4}",
    "8 bytes": rb"[\x00-\xff]{8}",
    "16 bytes": rb"[\x00-\xff]{16}",
}  # fmt: skip
Table = Mapping[tuple[str, ...], Iterable[int]]

_PLAIN: Table = {
    ("number",): (0x08, 0x0C, 0x0D, 0x10, 0x14, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0xD0, 0xD2, 0xD5, 0xD6),
    (): (0x00, 0x01, 0x05, 0x0A, 0x0B, 0x0F, 0x1A, 0x1B, *range(0x45, 0xC5), 0xD1, 0xD3, 0xD4),
    ("memory",): range(0x28, 0x3F),
    ("type",): (0x02, LOOP, 0x04),
    ("long",): (0x42,),
    ("number", "number"): (0x11,),
    ("4 bytes",): (0x43,),
    ("8 bytes",): (0x44,),
}
_BULK_TABLE: Table = {(): range(8), ("number",): (9, 11, 13, 15, 16, 17), ("number", "number"): (8, 10, 12, 14)}
_NO_VECTOR = {
    0x9A, 0xA2, 0xA5, 0xA6, 0xAF, 0xB0, 0xB2, 0xB3, 0xB4, 0xBB, 0xC2, 0xC5, 0xC6, 0xCF, 0xD0, 0xD2, 0xD3, 0xD4, 0xE2,
    0xEE,
}  # fmt: skip
_VECTOR_TABLE: Table = {
    ("memory",): (*range(0x0C), 0x5C, 0x5D),
    ("16 bytes",): (0x0C, 0x0D),
    ("byte",): range(0x15, 0x23),
    ("memory", "byte"): range(0x54, 0x5C),
    (): {*range(0x0E, 0x15), *range(0x23, 0x54), *range(0x5E, 0x114)} - _NO_VECTOR,
}


def _one_of(numbers: Iterable[int]) -> bytes:
    """Return the expression of any of these numbers, of which each takes one byte, or from 128 on two."""
    firsts: dict[bytes, bytes] = {}
    for number in numbers:
        first, rest = (number, b"") if number < 0x80 else (number & 0x7F | 0x80, b"\\x%02x" % (number >> 7))
        firsts[rest] = firsts.get(rest, b"") + b"\\x%02x" % first
    return b"(?:" + b"|".join(b"[" + first + b"]" + rest for rest, first in firsts.items()) + b")"


def _instruction(without: Collection[int]) -> bytes:
    """Return the expression of one instruction, its immediates included."""
    choices = []
    for immediates, opcodes in _PLAIN.items():
        heads = b"".join(b"\\x%02x" % opcode for opcode in opcodes if opcode not in without)
        if heads:
            choices.append((b"[" + heads + b"]", immediates))
    for prefix, table in ((_VECTOR, _VECTOR_TABLE), (_BULK, _BULK_TABLE)):
        choices += [(b"\\x%02x" % prefix + _one_of(numbers), immediates) for immediates, numbers in table.items()]
    return b"(?:" + b"|".join(head + b"".join(_IMMEDIATES[i] for i in rest) for head, rest in choices) + b")"


# ---- stepping ------------------------------------------------------------------------------------------------------

_ONE = re.compile(_instruction(()))
_TO_LOOP = re.compile(_instruction({LOOP, *READS}) + b"*+")
_TO_CALL_OR_LOOP = re.compile(_instruction({LOOP, *READS, *CALLS}) + b"*+")
_TO_CALL = re.compile(_instruction({CALL}) + b"*+")
_TO_BULK = re.compile(rb"(?:(?!\xfc[\x08\x0a\x0b])" + _instruction(()) + b")*+")
_NUMBER = re.compile(_32_BITS)
_VALUE_TYPE = re.compile(_TYPE)
_LOCALS = re.compile(_32_BITS + _TYPE)
_CATCH = re.compile(rb"(?:[\x00\x01]" + _32_BITS + rb"|[\x02\x03])" + _32_BITS)


def skip(code: bytes, at: int, end: int, *, calls: bool) -> int:
    """Skip instructions at the speed of C, from `at` on. Return where something begins that needs a look.

    That is a `loop`, one of `READS`, an instruction with a list, or one that is unknown; and with `calls` also a call.
    """
    found = (_TO_CALL_OR_LOOP if calls else _TO_LOOP).match(code, at, end)
    return found.end() if found is not None else at


def skip_to_bulk(code: bytes, at: int, end: int) -> int:
    """Skip instructions. Return where one begins that initialises, copies or fills memory, or one that needs a look."""
    found = _TO_BULK.match(code, at, end)
    return found.end() if found is not None else at


def skip_to_call(code: bytes, at: int, end: int) -> int:
    """Skip instructions. Return where one begins that calls a function by its number, or one that needs a look."""
    found = _TO_CALL.match(code, at, end)
    return found.end() if found is not None else at


def step(code: bytes, at: int, end: int) -> int:
    """Return where the instruction at `at` ends.

    Raises:
        UnknownInstruction: it is not in the tables, or goes beyond `end`.
    """
    found = _ONE.match(code, at, end)
    if found is not None:
        return found.end()
    opcode = code[at]
    try:
        if opcode == _BR_TABLE:
            count, after = number(code, at + 1, end)
            return _several(_NUMBER, count + 1, code, after, end)
        if opcode == _SELECT:
            count, after = number(code, at + 1, end)
            return _several(_VALUE_TYPE, count, code, after, end)
        if opcode == _TRY_TABLE:
            count, after = number(code, _several(_VALUE_TYPE, 1, code, at + 1, end), end)
            return _several(_CATCH, count, code, after, end)
    except ModuleRefused:
        pass
    raise UnknownInstruction(code[at : min(at + 3, end)].hex(" "), at)


def number(code: bytes, at: int, end: int) -> tuple[int, int]:
    """Read an unsigned number of 32 bits, and return it and where it ends.

    Raises:
        ModuleRefused: there is none before `end`.
    """
    if at < end and code[at] < 0x80:
        return code[at], at + 1
    found = _NUMBER.match(code, at, end)
    if found is None:
        raise ModuleRefused(f"at byte {at} of the module there is no number")
    value = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(found.group()))
    if value >> 32:
        raise ModuleRefused(f"the number at byte {at} of the module has more than 32 bits")
    return value, found.end()


def skip_types(code: bytes, at: int, end: int, count: int) -> int:
    """Return where `count` types of values end.

    Raises:
        ModuleRefused: there are not so many before `end`.
    """
    return _several(_VALUE_TYPE, count, code, at, end)


def skip_locals(code: bytes, at: int, end: int) -> int:
    """Return where a function's list of local variables ends, and its instructions begin.

    Raises:
        ModuleRefused: that is not before `end`.
    """
    count, at = number(code, at, end)
    return _several(_LOCALS, count, code, at, end)


def _several(form: re.Pattern[bytes], count: int, code: bytes, at: int, end: int) -> int:
    if count > end - at:
        raise ModuleRefused(f"the list at byte {at} of the module is cut off")
    for _ in range(count):
        found = form.match(code, at, end)
        if found is None:
            raise ModuleRefused(f"the list at byte {at} of the module is cut off or has what is not known")
        at = found.end()
    return at
