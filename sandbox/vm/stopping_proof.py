"""The proof, made when an image is built, that what this Wasmtime makes of a module with polls can be stopped.

A small module has code of the kinds that go on without end: loops of which a compiler could think that one needs no
poll of its own, and calls without a loop. It gets its polls, is compiled as guests are, and each kind is run and
stopped.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any

import wasmtime

from sandbox.memory.memory import forbid
from sandbox.vm.safepoints import PAGE_BYTES, add_polls

ENDLESS = 1 << 35
"""Rounds of a loop until it ends by itself, some ten seconds: what cannot be stopped fails, and does not hang."""
_BEGUN = 1 << 15
"""Address of a byte that the code sets when it has begun."""
_UNDER_WAY_SECONDS = 0.005

_ROUND = "(br_if {} (i64.ne (local.tee $n (i64.sub (local.get $n) (i64.const 1))) (i64.const 0)))"
_ROUND_A, _ROUND_B = _ROUND.format("$a"), _ROUND.format("$b")
_NO_ROUND = "(loop $a (br_if $a (i32.const 0)))"
_READ_BEFORE = " ".join(
    f"(drop ({type_}.load{bits}_{sign} (i32.const {address})))"
    for type_, bits, sign in (("i32", 8, "s"), ("i32", 8, "u"), ("i64", 32, "s"))
    for address in range(3)
)
KINDS = {
    "a loop": f"(loop $a {_ROUND_A})",
    "a loop in a loop": f"(loop $a (loop $b {_ROUND_B}) (br_if $a (i64.ne (local.get $n) (i64.const 0))))",
    "a loop after a loop": f"{_NO_ROUND} (loop $b {_ROUND_B})",
    "a loop that has read what is polled": f"{_READ_BEFORE} (loop $a {_ROUND_A})",
    "a loop that writes": f"(loop $a (i64.store (i32.const 40000) (local.get $n)) {_ROUND_A})",
    "a loop in one of two arms": f"(if (i64.eqz (local.get $n)) (then {_NO_ROUND}) (else (loop $b {_ROUND_B})))",
    "a loop that catches": f"(loop $a (block $c (try_table (catch $thrown $c) (throw $thrown))) {_ROUND_A})",
    "a loop around a table": f"(loop $a (block $b (br_table $b $b (i32.wrap_i64 (local.get $n)))) {_ROUND_A})",
    "a loop in a function called again": "(call $counts (i64.const 2)) (call $counts (local.get $n))",
    "calls without a loop": "(call $doubles (i32.const 36))",
}
"""What is stopped: code that goes on until the local `$n` has counted down from `ENDLESS`."""
_MODULE = """(module (memory (export "memory") 1) (tag $thrown)
  (func $counts (param $n i64) (loop $a {count}))
  (func $doubles (param $deep i32) (if (local.get $deep) (then
    (call $doubles (i32.sub (local.get $deep) (i32.const 1)))
    (call $doubles (i32.sub (local.get $deep) (i32.const 1))))))
  {functions})"""


class CannotStop(Exception):
    """Code ran to its end that should have been stopped."""


def check_stopping(config: wasmtime.Config) -> None:
    """Make sure that code which is compiled with these settings stops when page 0 of its memory is taken away.

    Raises:
        CannotStop: it does not.
    """
    engine = wasmtime.Engine(config)
    module = wasmtime.Module(engine, add_polls(bytes(wasmtime.wat2wasm(text_of(KINDS.values())))).module)
    for i, kind in enumerate(KINDS):
        if not stops(engine, module, str(i), ENDLESS):
            raise CannotStop(f"this Wasmtime drops polls: {kind} could not be stopped")


def text_of(codes: Iterable[str]) -> str:
    """Return a module, as text, whose exported functions "0", "1" and so on begin, and then run these codes."""
    begin = f"(i32.store8 (i32.const {_BEGUN}) (i32.const 1))"
    functions = [f'(func (export "{i}") (param $n i64) {begin} {code})' for i, code in enumerate(codes)]
    return _MODULE.format(count=_ROUND_A, functions=" ".join(functions))


def stops(engine: wasmtime.Engine, module: wasmtime.Module, function: str, *arguments: int) -> bool:
    """Run an exported function, take page 0 away once it has set the byte at 32,768, and return whether that ended it.

    Otherwise it has run to its own end.
    """
    with wasmtime.Store(engine) as store:
        exports: Any = wasmtime.Instance(store, module, []).exports(store)
        memory = exports["memory"]
        base = ctypes.addressof(memory.data_ptr(store).contents)
        ended = threading.Event()
        stopper = threading.Thread(target=_take_away, args=(base, ended), name="stopping-proof")
        stopper.start()
        try:
            exports[function](store, *arguments)
        except wasmtime.Trap as trap:
            return trap.trap_code is wasmtime.TrapCode.MEMORY_OUT_OF_BOUNDS
        finally:
            ended.set()
            stopper.join()
    return False


def _take_away(base: int, ended: threading.Event) -> None:
    begun = ctypes.c_uint8.from_address(base + _BEGUN)
    while not begun.value and not ended.wait(0.001):
        pass
    ended.wait(_UNDER_WAY_SECONDS)
    forbid(base, PAGE_BYTES)
