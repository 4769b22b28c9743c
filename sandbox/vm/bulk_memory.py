"""Puts functions in the place of a module's instructions that copy and fill memory, which these do part by part.

The compiler makes of such an instruction a call into the host, which then copies. One over gigabytes could not be
stopped. Worse: one that touches the page by which a guest is stopped, while that is unreadable, would be a fault of the
host's, and end the process. So each is done in parts of a mebibyte, in a loop, which has a poll like any other; and one
that touches the first page traps. (A guest gets there only where it has lost its own memory, but that is its to lose.)

Most are of a few bytes, for which the way into the host takes longer than all else. Up to `SMALL_BYTES` the functions
do without it: they read and write as many bytes at the beginning as at the end, which may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import wasmtime

from sandbox.vm.instructions import ModuleRefused, number, skip_locals, skip_to_bulk, skip_types, step
from sandbox.vm.safepoints import PAGE_BYTES, bodies, imported_functions, sections, written

PART_BYTES = 1 << 20
"""Copied or filled between two polls."""
SMALL_BYTES = 128
"""Copied or filled by the guest's own loads and stores."""

_TYPES, _IMPORTS, _FUNCTIONS, _CODE = 1, 2, 3, 10
_INIT, _COPY, _FILL = b"\xfc\x08", b"\xfc\x0a", b"\xfc\x0b"
_FUNCTION_TYPE, _CALL = 0x60, 0x10
_THREE_NUMBERS = bytes([_FUNCTION_TYPE, 3, 0x7F, 0x7F, 0x7F, 0])


class _Way(NamedTuple):
    """How `least` bytes or more are copied: `times` at either end, by instructions that take `size` bytes each."""

    least: int
    times: int
    load: str
    store: str
    size: int


_WAYS = (
    _Way(65, 4, "v128.load", "v128.store", 16),
    _Way(33, 2, "v128.load", "v128.store", 16),
    _Way(16, 1, "v128.load", "v128.store", 16),
    _Way(8, 1, "i64.load", "i64.store", 8),
    _Way(4, 1, "i64.load32_u", "i64.store32", 4),
    _Way(2, 1, "i64.load16_u", "i64.store16", 2),
    _Way(1, 1, "i64.load8_u", "i64.store8", 1),
)


def _small(*, copying: bool) -> str:
    """Return what copies, or fills with `$bytes`, 1 to `SMALL_BYTES`."""
    return " ".join(
        f"(if (i32.ge_u (local.get $left) (i32.const {way.least})) (then {_both_ends(way, copying)} return))"
        for way in _WAYS
    )


def _both_ends(way: _Way, copying: bool) -> str:
    """Return what reads all, and then writes it."""

    def place(of: str, end: bool) -> str:
        after = f"(i32.add (local.get {of}) (local.get $left))"
        return f"(i32.sub {after} (i32.const {way.times * way.size}))" if end else f"(local.get {of})"

    filling = "(i64x2.splat (local.get $bytes))" if way.load == "v128.load" else "(local.get $bytes)"
    read, written_last_first = [], []
    for end in (False, True):
        for offset in range(0, way.times * way.size, way.size):
            read += [place("$to", end), f"({way.load} offset={offset} {place('$from', end)})" if copying else filling]
            written_last_first.append(f"{way.store} offset={offset}")
    return " ".join([*read, *reversed(written_last_first)])


_IN_PARTS = f"""(module (memory 1)
  (func (param $to i32) (param $from i32) (param $left i32) (local $part i32)
    (if (i32.and (i32.ne (local.get $left) (i32.const 0)) (i32.or
          (i32.or (i32.lt_u (local.get $to) (i32.const {PAGE_BYTES}))
            (i32.lt_u (i32.add (local.get $to) (local.get $left)) (local.get $to)))
          (i32.or (i32.lt_u (local.get $from) (i32.const {PAGE_BYTES}))
            (i32.lt_u (i32.add (local.get $from) (local.get $left)) (local.get $from)))))
      (then unreachable))
    (if (i32.le_u (i32.sub (local.get $left) (i32.const 1)) (i32.const {SMALL_BYTES - 1}))
      (then {_small(copying=True)}))
    (local.set $part (i32.const {PART_BYTES}))
    (if (i32.le_u (local.get $to) (local.get $from))
      (then (loop $more
        (if (i32.lt_u (local.get $left) (local.get $part)) (then (local.set $part (local.get $left))))
        (memory.copy (local.get $to) (local.get $from) (local.get $part))
        (local.set $to (i32.add (local.get $to) (local.get $part)))
        (local.set $from (i32.add (local.get $from) (local.get $part)))
        (br_if $more (local.tee $left (i32.sub (local.get $left) (local.get $part))))))
      (else (loop $more
        (if (i32.lt_u (local.get $left) (local.get $part)) (then (local.set $part (local.get $left))))
        (local.set $left (i32.sub (local.get $left) (local.get $part)))
        (memory.copy (i32.add (local.get $to) (local.get $left)) (i32.add (local.get $from) (local.get $left))
          (local.get $part))
        (br_if $more (local.get $left))))))
  (func (param $to i32) (param $byte i32) (param $left i32) (local $part i32) (local $bytes i64)
    (if (i32.and (i32.ne (local.get $left) (i32.const 0)) (i32.or
          (i32.lt_u (local.get $to) (i32.const {PAGE_BYTES}))
          (i32.lt_u (i32.add (local.get $to) (local.get $left)) (local.get $to))))
      (then unreachable))
    (if (i32.le_u (i32.sub (local.get $left) (i32.const 1)) (i32.const {SMALL_BYTES - 1}))
      (then
        (local.set $bytes (i64.mul (i64.extend_i32_u (i32.and (local.get $byte) (i32.const 0xff)))
          (i64.const 0x0101010101010101)))
        {_small(copying=False)}))
    (local.set $part (i32.const {PART_BYTES}))
    (loop $more
      (if (i32.lt_u (local.get $left) (local.get $part)) (then (local.set $part (local.get $left))))
      (memory.fill (local.get $to) (local.get $byte) (local.get $part))
      (local.set $to (i32.add (local.get $to) (local.get $part)))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (local.get $part)))))))"""
"""What copies and what fills. Neither names a type or a function, so they mean the same in any module with a memory."""


def in_parts(module: bytes) -> bytes:
    """Return the module with such functions instead of the instructions. Takes time linear in its size.

    Raises:
        ModuleRefused: it is malformed, or initialises memory from data by itself, or has several memories or types that
            are none of functions.
    """
    found = {kind: (start, end) for kind, _, start, end in sections(module)}
    if _CODE not in found or not any(one in module for one in (_INIT, _COPY, _FILL)):
        return module
    types = _count_of_types(module, *found[_TYPES])
    imported = imported_functions(module, *found[_IMPORTS]) if _IMPORTS in found else 0
    own, _ = number(module, *found[_FUNCTIONS])
    added = {
        _TYPES: _longer(module, *found[_TYPES], [_THREE_NUMBERS]),
        _FUNCTIONS: _longer(module, *found[_FUNCTIONS], [written(types)] * 2),
        _CODE: _code(module, *found[_CODE], imported + own),
    }
    out = [module[:8]]
    for kind, head, _, end in sections(module):
        parts = added.get(kind)
        out += [module[head:end]] if parts is None else [bytes([kind]), written(sum(map(len, parts))), *parts]
    return b"".join(out)


def _longer(module: bytes, at: int, end: int, more: list[bytes]) -> list[bytes]:
    """Return a list of the module's in parts, with more at its end."""
    count, start = number(module, at, end)
    return [written(count + len(more)), module[start:end], *more]


def _count_of_types(module: bytes, at: int, end: int) -> int:
    count, at = number(module, at, end)
    for _ in range(count):
        if at >= end or module[at] != _FUNCTION_TYPE:
            raise ModuleRefused(f"the type at byte {at} of the module is none of a function")
        at += 1
        for _side in range(2):
            values, at = number(module, at, end)
            at = skip_types(module, at, end, values)
    return count


def _code(module: bytes, at: int, end: int, first: int) -> list[bytes]:
    """Return the code in parts. The functions that copy and fill have the numbers `first` and `first + 1`."""
    added = list(_copying_and_filling())
    count, since = number(module, at, end)
    parts = [written(count + len(added))]
    calls = {_COPY: bytes([_CALL]) + written(first), _FILL: bytes([_CALL]) + written(first + 1)}
    for head, start, after in bodies(module, at, end):
        body = list(_calling(module, start, after, calls))
        if len(body) > 1:
            parts += [module[since:head], written(sum(map(len, body))), *body]
            since = after
    return [*parts, module[since:end], *added]


def _calling(module: bytes, start: int, end: int, calls: dict[bytes, bytes]) -> Iterator[bytes]:
    """Yield a function's body in parts, with calls in the place of the instructions."""
    if any(module.find(one, start, end) >= 0 for one in (_INIT, _COPY, _FILL)):
        at = skip_locals(module, start, end)
        while (at := skip_to_bulk(module, at, end)) < end:
            after = step(module, at, end)
            instruction = module[at:after]
            if instruction[:2] in (_INIT, _COPY, _FILL):
                call = calls.get(instruction[:2])
                if call is None or any(instruction[2:]):
                    raise ModuleRefused(f"byte {at} of the module initialises memory, or touches a second one")
                yield from (module[start:at], call)
                start = after
            at = after
    yield module[start:end]


def _copying_and_filling() -> Iterator[bytes]:
    """Yield the two functions as they lie in code."""
    module = bytes(wasmtime.wat2wasm(_IN_PARTS))
    start, end = next((start, end) for kind, _, start, end in sections(module) if kind == _CODE)
    for head, _, after in bodies(module, start, end):
        yield module[head:after]
