"""A module with small functions in the place of calls does what it did, and can be stopped as before."""

from __future__ import annotations

from typing import Any

import pytest
import wasmtime

from sandbox.vm import engine
from sandbox.vm.inlining import MOST_BYTES, MOST_PLACES, MOST_VARIABLES, inline
from sandbox.vm.instructions import ModuleRefused
from sandbox.vm.safepoints import add_polls

WAT = """(module
  (import "a" "note" (func $note (param i32)))
  (memory 1)
  (func $sum (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func $early (param $n i32) (result i32) (local $twice i32)
    (if (i32.eqz (local.get $n)) (then (return (i32.const -1))))
    (block (br_if 0 (i32.lt_s (local.get $n) (i32.const 10))) (br 1 (i32.const 99)))
    (local.tee $twice (i32.add (local.get $twice) (local.get $n)))
    (i32.add (local.get $twice)))
  (func $all (param i64 f32 f64 v128 i32) (result i64) (local i64 f32 f64 v128 i64)
    (local.set 5 (i64.add (local.get 5) (local.get 0)))
    (local.set 6 (f32.add (local.get 6) (local.get 1)))
    (local.set 7 (f64.add (local.get 7) (local.get 2)))
    (local.set 8 (i64x2.add (local.get 8) (local.get 3)))
    (local.set 9 (i64.add (local.get 9) (i64.extend_i32_u (local.get 4))))
    (i64.add (i64.add (local.get 5) (i64.trunc_f32_s (local.get 6)))
      (i64.add (i64.add (i64.trunc_f64_s (local.get 7)) (i64x2.extract_lane 0 (local.get 8))) (local.get 9))))
  (func $noted (param i32) (if (local.get 0) (then (call $note (local.get 0)) (return))) (call $nothing))
  (func $nothing)
  (func $told (param i32) (call $note (local.get 0)))
  (func $down (param i32) (result i32)
    (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 7))
      (else (call $down (i32.sub (local.get 0) (i32.const 1))))))
  (func (export "sums") (param i32) (result i32)
    (call $sum
      (call $sum (local.get 0) (i32.const 1))
      (call $sum (i32.const 2) (call $sum (i32.const 3) (local.get 0)))))
  (func (export "early") (param i32) (result i32) (call $early (local.get 0)))
  (func (export "early in a loop") (param $n i32) (result i32) (local $all i32)
    (loop $again
      (local.set $all (i32.add (i32.mul (local.get $all) (i32.const 3)) (call $early (local.get $n))))
      (br_if $again (i32.ge_s (local.tee $n (i32.sub (local.get $n) (i32.const 1))) (i32.const 0))))
    (local.get $all))
  (func (export "all") (param i32) (result i32) (local i32 f64)
    (i32.wrap_i64 (i64.add
      (call $all (i64.const 1) (f32.const 2) (f64.const 3) (v128.const i64x2 4 5) (local.get 0))
      (call $all (i64.const 10) (f32.const 20) (f64.const 30) (v128.const i64x2 40 50) (local.get 0)))))
  (func (export "told") (param i32) (result i32) (call $told (local.get 0)) (call $noted (local.get 0)) (i32.const 0))
  (func (export "down") (param i32) (result i32) (call $down (local.get 0)))
  (func (export "trap") (param i32) (result i32) (call $trapping (local.get 0)))
  (func $trapping (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0))))"""
EXPORTS = ("sums", "early", "early in a loop", "all", "told", "down", "trap")


def outcomes(wasm: bytes) -> list[object]:
    """Return what each export does of several numbers, and what the host hears meanwhile."""
    made = wasmtime.Engine(engine.settings())
    store, linker = wasmtime.Store(made), wasmtime.Linker(made)
    seen: list[object] = []
    linker.define_func("a", "note", wasmtime.FuncType([wasmtime.ValType.i32()], []), seen.append)
    exports: Any = linker.instantiate(store, wasmtime.Module(made, wasm)).exports(store)
    for name in EXPORTS:
        for argument in (0, 1, 5, 9, 10, 11, 200, -3):
            if (name, argument) == ("down", -3):
                continue
            try:
                seen.append((name, argument, exports[name](store, argument)))
            except wasmtime.Trap as trap:
                seen.append((name, argument, trap.trap_code))
    return seen


def test_the_module_does_what_it_did() -> None:
    plain = bytes(wasmtime.wat2wasm(WAT))
    inlined = inline(plain)
    assert len(inlined) > len(plain)
    assert outcomes(inlined) == outcomes(plain)
    assert outcomes(add_polls(inlined).module) == outcomes(plain)


def calls_of(body: str, more: str = "", places: int = 1) -> int:
    """Return how many calls of a function with this body are left, where it is called in so many places."""
    callers = "(func (call $one))" * places
    module = bytes(wasmtime.wat2wasm(f"(module (memory 1) (func $one {body}) {callers} {more})"))
    return inline(module).count(b"\x10\x00\x0b")


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("(loop (br_if 0 (i32.const 0)))", ""),
        ("(block (br_table 0 0 (i32.const 1)))", ""),
        ("(throw $tag)", "(tag $tag)"),
        ("(block (try_table (catch_all 0) (nop)))", ""),
        ("(call $other) (call $other)", "(func $other)"),
        ("(local externref)", ""),
        (f"(local {'i32 ' * (MOST_VARIABLES + 1)}) (local.set {MOST_VARIABLES} (i32.const 1))", ""),
        ("(nop)" * (MOST_BYTES + 1), ""),
    ],
    ids=["a loop", "a list of branches", "throwing", "catching", "two calls", "a reference", "many variables", "large"],
)
def test_other_functions_stay_calls(body: str, more: str) -> None:
    assert calls_of(body, more) == 1


def test_a_function_is_put_into_few_others_or_is_tiny() -> None:
    small = "(nop)" * 40
    assert calls_of(small) == 0
    assert calls_of(small, places=MOST_PLACES) == 0
    assert calls_of(small, places=MOST_PLACES + 1) == MOST_PLACES + 1
    assert calls_of("", places=MOST_PLACES + 1) == 0


def test_a_function_that_calls_itself_is_not_put_into_itself() -> None:
    assert calls_of("(call $one)", places=0) == 1


def test_what_cannot_be_read_is_refused() -> None:
    module = bytes(wasmtime.wat2wasm("(module (type (struct)) (func))"))
    with pytest.raises(ModuleRefused, match="none of a function"):
        inline(module)
