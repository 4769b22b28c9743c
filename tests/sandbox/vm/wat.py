"""WebAssembly as text: one of each instruction, and random programs that end."""

from __future__ import annotations

from hypothesis import strategies as st

_INT_TESTS = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"
_INT = f"clz ctz popcnt add sub mul div_s div_u rem_s rem_u and or xor shl shr_s shr_u rotl rotr eqz {_INT_TESTS}"
_FLOAT_TESTS = "eq ne lt gt le ge"
_FLOAT = f"abs neg ceil floor trunc nearest sqrt add sub mul div min max copysign {_FLOAT_TESTS}"
_V_INT = "abs neg all_true bitmask shl shr_s shr_u add sub"
_V_TESTS = "eq ne lt_s lt_u gt_s gt_u le_s le_u ge_s ge_u"
_WIDER = "extend", "extmul"
_V_FLOAT = f"ceil floor trunc nearest abs neg sqrt add sub mul div min max pmin pmax {_FLOAT_TESTS}"


def _of(type_: str, names: str) -> list[str]:
    return [f"{type_}.{name}" for name in names.split()]


_MEMORY = [
    *_of("i32", "load load8_s load8_u load16_s load16_u store store8 store16"),
    *_of("i64", "load load8_s load8_u load16_s load16_u load32_s load32_u store store8 store16 store32"),
    *_of("f32", "load store"),
    *_of("f64", "load store"),
    *_of("v128", "load load8x8_s load8x8_u load16x4_s load16x4_u load32x2_s load32x2_u load8_splat load16_splat"),
    *_of("v128", "load32_splat load64_splat store load32_zero load64_zero"),
]
_LANE_MEMORY = _of("v128", "load8_lane load16_lane load32_lane load64_lane store8_lane store16_lane store32_lane")
_LANE_MEMORY.append("v128.store64_lane")

INSTRUCTIONS = [
    "unreachable", "nop", "block end", "block (result i32) end", "block (result (ref null $t)) end",
    "block (type 0) end", "loop (type 0) end", "loop end", "if end", "if else end", "throw 0", "throw_ref", "br 0",
    "br 300", "br_if 0",
    "br_table 0", "br_table 0 1 300 2", "return", "call 0", "call 90000", "call_indirect (type 0)",
    "call_indirect 1 (type 0)", "call_ref $t", "drop", "select", "select (result i32)", "select (result (ref null $t))",
    "try_table end", "try_table (result i32) (catch 0 0) (catch_ref 0 1) (catch_all 2) (catch_all_ref 300) end",
    "local.get 0", "local.set 300", "local.tee 0", "global.get 0", "global.set 0", "table.get 0", "table.set 1",
    "memory.size", "memory.grow", "memory.grow 1", "i32.const -1", "i32.const 2147483647", "i64.const -1",
    "i64.const 9223372036854775807", "i64.const -9223372036854775808", "f32.const nan", "f64.const -1.5",
    "ref.null func", "ref.null extern", "ref.null exn", "ref.null $t", "ref.is_null", "ref.func 0", "ref.eq",
    "ref.as_non_null", "br_on_null 0", "br_on_non_null 300", "memory.init 0", "memory.init 1 0", "data.drop 0",
    "memory.copy", "memory.copy 1 0", "memory.fill", "memory.fill 1", "table.init 0", "table.init 1 0", "elem.drop 0",
    "table.copy", "table.copy 1 0", "table.grow 0", "table.size 0", "table.fill 0",
    *_of("i32", _INT), *_of("i64", _INT), *_of("f32", _FLOAT), *_of("f64", _FLOAT),
    *_of("i32", "wrap_i64 trunc_f32_s trunc_f32_u trunc_f64_s trunc_f64_u reinterpret_f32 extend8_s extend16_s"),
    *_of("i64", "extend_i32_s extend_i32_u trunc_f32_s trunc_f32_u trunc_f64_s trunc_f64_u reinterpret_f64"),
    *_of("i64", "extend8_s extend16_s extend32_s"),
    *_of("f32", "convert_i32_s convert_i32_u convert_i64_s convert_i64_u demote_f64 reinterpret_i32"),
    *_of("f64", "convert_i32_s convert_i32_u convert_i64_s convert_i64_u promote_f32 reinterpret_i64"),
    *(f"{to}.trunc_sat_{of}_{sign}" for to in ("i32", "i64") for of in ("f32", "f64") for sign in "su"),
    *_MEMORY, *(f"{name} offset=4294967295 align=1" for name in _MEMORY), *(f"{name} 1 offset=300" for name in _MEMORY),
    *(f"{name} 1" for name in _LANE_MEMORY), *(f"{name} 1 offset=300 1" for name in _LANE_MEMORY),
    "v128.const i32x4 0x0b030b03 3 -1 0x41414141", "i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 31",
    *_of("v128", "not and andnot or xor bitselect any_true"), "i8x16.swizzle",
    *(f"{shape}.splat" for shape in ("i8x16", "i16x8", "i32x4", "i64x2", "f32x4", "f64x2")),
    *(f"{shape}.replace_lane 1" for shape in ("i8x16", "i16x8", "i32x4", "i64x2", "f32x4", "f64x2")),
    *(f"{shape}.extract_lane{sign} 1" for shape in ("i8x16", "i16x8") for sign in ("_s", "_u")),
    *(f"{shape}.extract_lane 1" for shape in ("i32x4", "i64x2", "f32x4", "f64x2")),
    *_of("i8x16", f"{_V_INT} {_V_TESTS} popcnt narrow_i16x8_s narrow_i16x8_u add_sat_s add_sat_u sub_sat_s sub_sat_u"),
    *_of("i8x16", "min_s min_u max_s max_u avgr_u"),
    *_of("i16x8", f"{_V_INT} {_V_TESTS} narrow_i32x4_s narrow_i32x4_u add_sat_s add_sat_u sub_sat_s sub_sat_u mul"),
    *_of("i16x8", "min_s min_u max_s max_u avgr_u q15mulr_sat_s extadd_pairwise_i8x16_s extadd_pairwise_i8x16_u"),
    *(f"i16x8.{what}_{half}_i8x16_{sign}" for what in _WIDER for half in ("low", "high") for sign in "su"),
    *_of("i32x4", f"{_V_INT} {_V_TESTS} mul min_s min_u max_s max_u dot_i16x8_s"),
    *_of("i32x4", "extadd_pairwise_i16x8_s extadd_pairwise_i16x8_u"),
    *(f"i32x4.{what}_{half}_i16x8_{sign}" for what in _WIDER for half in ("low", "high") for sign in "su"),
    *_of("i32x4", "trunc_sat_f32x4_s trunc_sat_f32x4_u trunc_sat_f64x2_s_zero trunc_sat_f64x2_u_zero"),
    *_of("i64x2", f"{_V_INT} mul eq ne lt_s gt_s le_s ge_s"),
    *(f"i64x2.{what}_{half}_i32x4_{sign}" for what in _WIDER for half in ("low", "high") for sign in "su"),
    *_of("f32x4", f"{_V_FLOAT} convert_i32x4_s convert_i32x4_u demote_f64x2_zero"),
    *_of("f64x2", f"{_V_FLOAT} convert_low_i32x4_s convert_low_i32x4_u promote_low_f32x4"),
    "i8x16.relaxed_swizzle", "i16x8.relaxed_q15mulr_s", "i16x8.relaxed_dot_i8x16_i7x16_s",
    *_of("i32x4", "relaxed_trunc_f32x4_s relaxed_trunc_f32x4_u relaxed_trunc_f64x2_s_zero relaxed_trunc_f64x2_u_zero"),
    "i32x4.relaxed_dot_i8x16_i7x16_add_s",
    *(f"{shape}.relaxed_laneselect" for shape in ("i8x16", "i16x8", "i32x4", "i64x2")),
    *(f"{shape}.relaxed_{name}" for shape in ("f32x4", "f64x2") for name in ("madd", "nmadd", "min", "max")),
]  # fmt: skip
"""All that are known, with immediates of each length."""

REFUSED = [
    "return_call 0", "return_call_indirect (type 0)", "return_call_ref $t", "i32.atomic.load", "atomic.fence",
    "memory.atomic.notify", "struct.new 0", "ref.i31", "i31.get_s", "array.len", "i64.add128", "i64.mul_wide_s",
    "try end", "rethrow 0",
]  # fmt: skip
"""Tail calls, threads, objects, wide arithmetic, and exceptions in their old form."""


def module(body: str, more: str = "") -> str:
    """A module whose function number 0 has this body."""
    return f"(module (type $t (func)) (memory 1) (memory 1) {more} (func {body}))"


# ---- random programs ----------------------------------------------------------------------------------------------

_NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 255, 256, 4095, 4096, 40000, 65535, 65536, -1, -2, 2**31 - 1, -(2**31)])
_SPEND = "(global.set $fuel (i32.sub (global.get $fuel) (i32.const 1)))"
_TIRED = "(i32.lt_s (global.get $fuel) (i32.const 0))"


def _expression(depth: int) -> st.SearchStrategy[str]:
    leaf = st.one_of(
        _NUMBERS.map(lambda number: f"(i32.const {number})"),
        st.sampled_from(["(local.get $a)", "(local.get $b)", "(memory.size)", "(i32.wrap_i64 (local.get $l))"]),
    )
    if depth == 0:
        return leaf
    inner = _expression(depth - 1)
    address = inner.map(lambda at: f"(i32.and {at} (i32.const 0xffff))")
    operators = "add sub mul and or xor shl rotl div_s rem_u eq lt_s ge_u"
    return st.one_of(
        leaf,
        st.builds("(i32.{} {} {})".format, st.sampled_from(operators.split()), inner, inner),
        st.builds("(i32.{} {})".format, st.sampled_from(["clz", "eqz", "extend8_s", "popcnt"]), inner),
        st.builds("(i32.{} {})".format, st.sampled_from(["load8_s", "load8_u", "load16_s", "load"]), address),
        st.builds("(i32.wrap_i64 (i64.{} offset=3 {}))".format, st.sampled_from(["load8_s", "load16_s"]), address),
        st.builds("(select (result i32) {} {} {})".format, inner, inner, inner),
        st.builds("(i32.trunc_sat_f64_s (f64.convert_i32_u {}))".format, inner),
        st.builds("(i32x4.extract_lane 2 (i32x4.add (i32x4.splat {}) (v128.const i32x4 3 3 65 11)))".format, inner),
        st.builds("(block (result i32) (br 0 {}))".format, inner),
        st.builds("(block (result i32) (i32.const 5) (loop (param i32) (result i32) (i32.xor {})))".format, inner),
    )


def statements(depth: int) -> st.SearchStrategy[str]:
    """Statements of a function with the locals `$a`, `$b` and `$l`. Loops and calls end by `$fuel`."""
    value = _expression(2)
    address = value.map(lambda at: f"(i32.and {at} (i32.const 0xffff))")
    simple = st.one_of(
        st.builds("(local.set ${} {})".format, st.sampled_from("ab"), value),
        value.map("(local.set $l (i64.extend_i32_s {}))".format),
        st.builds("(i32.{} {} {})".format, st.sampled_from(["store8", "store16", "store"]), address, value),
        st.builds("(memory.fill {} {} (i32.const 300))".format, address.map(_past_first), value),
        st.builds("(memory.copy {} {} (i32.const 700))".format, address.map(_past_first), address.map(_past_first)),
        st.just("(memory.init $d (i32.const 5000) (i32.const 1) (i32.const 3))"),
        value.map("(local.set $a (call $f {}))".format),
        value.map(
            "(local.set $b (call_indirect (param i32) (result i32) {} (i32.and (local.get $a) (i32.const 3))))".format
        ),
        st.just("(nop)"),
    )
    if depth == 0:
        return simple
    several = st.lists(statements(depth - 1), min_size=1, max_size=3).map(" ".join)
    return st.one_of(
        simple,
        st.builds("(if {} (then {}) (else {}))".format, value, several, several),
        st.builds("(block {} (br_if 0 {}) {})".format, several, value, several),
        st.builds("(block (block (block (br_table 0 2 1 {}) {}) {}) {})".format, value, several, several, several),
        st.builds(
            "(loop {0} {1} (if {2} (then (return (i32.const 7)))) (br_if 0 {3}))".format,
            st.just(_SPEND), several, st.just(_TIRED), value,
        ),
        st.builds("(block (loop {} (br 1)))".format, several),
        st.builds("(block (try_table (catch_all 0) {} (br_if 1 {}) (throw $x)))".format, several, value),
        several.map("(block (br 0) (loop {}))".format),
    )  # fmt: skip


def _past_first(address: str) -> str:
    return f"(i32.add {address} (i32.const 4096))"


def programs() -> st.SearchStrategy[str]:
    """Modules that export `run`, which ends, `memory` and `fuel`."""
    body = st.lists(statements(3), min_size=3, max_size=6).map(" ".join)
    return st.builds(
        f"""(module (memory (export "memory") 2) (tag $x) (global $fuel (export "fuel") (mut i32) (i32.const 300))
          (table 4 funcref) (elem (i32.const 0) $f $g $f) (data $d "\\03\\03\\0b\\1a")
          (data (i32.const 9000) "\\03\\40")
          (func $f (param $a i32) (result i32) (local $b i32) (local $l i64) {_SPEND}
            (if {_TIRED} (then (return (i32.const 9)))) {{}} (local.get $a))
          (func $g (param $a i32) (result i32) (local $b i32) (local $l i64) {_SPEND}
            (if {_TIRED} (then (return (i32.const 9)))) {{}} (i32.add (local.get $b) (local.get $a)))
          (func (export "run") (result i32) (local $a i32) (local $b i32) (local $l i64)
            (local.set $a (i32.const 5)) (local.set $b (i32.const -3)) {{}}
            (i32.add (local.get $a) (i32.mul (local.get $b) (i32.const 31)))))""".format,
        body, body, body,
    )  # fmt: skip
