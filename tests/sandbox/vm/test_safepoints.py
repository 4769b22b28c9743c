"""Polls in a module: everything stays as it was, nothing goes on without one, and what is malformed is refused."""

from __future__ import annotations

import contextlib
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sandbox.vm import bulk_memory, engine, image, instructions, safepoints, stopping_proof
from sandbox.vm.image import ImageError, ImageSpec, prepare
from sandbox.vm.instructions import LOOP, ModuleRefused, UnknownInstruction, number, skip, skip_locals, step
from sandbox.vm.safepoints import PAGE_BYTES, add_polls, sections
from tests.sandbox.vm.wat import INSTRUCTIONS, REFUSED, module, programs

POLL = re.compile(rb"\x41([\x80-\xff]?[\x00-\x3f])[\x2c\x30\x31\x32]\x00\x00\x1a")
END = 0x0B


def wasm(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


ENGINE = wasmtime.Engine(engine.settings())


def bodies(data: bytes) -> list[tuple[int, int]]:
    """Where the instructions of each function begin and end."""
    return [
        (skip_locals(data, start, end), end)
        for kind, _, *code in sections(data)
        if kind == 10
        for _, start, end in safepoints.bodies(data, *code)
    ]


# ---- instructions -------------------------------------------------------------------------------------------------


def encoded(text: str) -> bytes:
    """An instruction as another encoder writes it."""
    data = wasm(module(text))
    ((start, end),) = bodies(data)
    assert data[end - 1] == END
    return data[start : end - 1]


def test_every_instruction_is_stepped_over_as_it_is_written_elsewhere() -> None:
    wrong = []
    for text in INSTRUCTIONS:
        code = encoded(text)
        size = len(code) - text.count(" end") - text.count(" else")
        if step(code + bytes(20), 0, len(code)) != size or step(code, 0, size) != size:
            wrong.append((text, code.hex(" ")))
    assert wrong == []


def test_only_these_instructions_are_known() -> None:
    """The names make up exactly what the tables hold."""
    written = {(0x05, 0), (END, 0)}  # `else` and `end`
    for text in INSTRUCTIONS:
        code = encoded(text)
        written.add((code[0], number(code, 1, len(code))[0]) if code[0] in (0xFC, 0xFD) else (code[0], 0))
    single = {(opcode, 0) for opcode in range(256) if opcode not in (0xFC, 0xFD)}
    prefixed = {(prefix, opcode) for prefix in (0xFC, 0xFD) for opcode in range(1 << 10)}
    known = set()
    for prefix, opcode in single | prefixed:
        start = bytes([prefix]) + (safepoints.written(opcode) if prefix in (0xFC, 0xFD) else b"")
        try:
            step(start + bytes(40), 0, len(start) + 40)
        except UnknownInstruction:
            continue
        known.add((prefix, opcode))
    assert known == written


@pytest.mark.parametrize("text", REFUSED)
def test_an_instruction_that_is_not_known_is_refused_by_name_and_place(text: str) -> None:
    more = '(import "a" "b" (func)) (func nop) (type (struct))'
    data = wasm(module(f"nop {text}", more).replace("(memory 1) (memory 1)", '(import "a" "m" (memory 1))'))
    with pytest.raises(UnknownInstruction) as refused:
        add_polls(data)
    start, _ = bodies(data)[1]
    assert (refused.value.function, refused.value.offset) == (2, start + 1)
    assert refused.value.opcode == data[start + 1 : start + 4].hex(" ")
    assert str(start + 1) in str(refused.value)


def test_what_is_written_longer_than_it_need_be_is_stepped_over() -> None:
    padded = [
        "28 82 80 00 90 80 80 80 00", "28 c2 80 00 81 00 90 80 00", "10 80 80 80 80 00", "41 80 80 80 80 00",
        "42 80 80 80 80 80 80 80 80 80 00", "02 80 00", "0e 81 00 80 00 81 00",
    ]  # fmt: skip
    for text in padded:
        code = bytes.fromhex(text)
        assert step(code, 0, len(code)) == len(code), text


@pytest.mark.parametrize(
    "code", ["41 80 80 80 80 80 00", "10", "41", "43 00 00 00", "fd 0c 00", "0e ff ff ff ff 0f 00", "fc"]
)
def test_an_instruction_that_is_cut_off_is_unknown(code: str) -> None:
    data = bytes.fromhex(code)
    with pytest.raises(UnknownInstruction):
        step(data, 0, len(data))


# ---- what polls change, and do not --------------------------------------------------------------------------------


def outcome(data: bytes) -> list[object]:
    """What a program gives: its result or trap, its memory, and the fuel it left."""
    with wasmtime.Store(ENGINE) as store:
        exports: Any = wasmtime.Instance(store, wasmtime.Module(ENGINE, data), []).exports(store)
        try:
            result: object = exports["run"](store)
        except wasmtime.Trap as trap:
            result = trap.trap_code
        memory = exports["memory"].read(store, 0, exports["memory"].data_len(store))
        return [result, bytes(memory), exports["fuel"].value(store)]


@settings(max_examples=60, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(programs())
def test_a_program_with_polls_does_what_it_did_and_no_loop_is_without_one(text: str) -> None:
    data = wasm(text)
    polled = add_polls(data)
    wasmtime.Module.validate(ENGINE, polled.module)
    assert outcome(polled.module) == outcome(data)
    loops = 0
    for start, end in bodies(polled.module):
        polls, at = [], start
        entry = POLL.match(polled.module, at, end)
        polls += [entry[0]] if entry is not None else []
        while at < end:
            code = polled.module[at]
            at = step(polled.module, at, end)
            if code == LOOP:
                head = POLL.match(polled.module, at, end)
                assert head is not None
                polls.append(head[0])
        assert len(set(polls)) == len(polls), "each reads another byte"
        loops += len(polls) - (entry is not None)
    assert loops == polled.loops


def test_skipping_finds_what_stepping_finds() -> None:
    data = wasm(module(" ".join(text for text in INSTRUCTIONS if not text.startswith("loop"))))
    ((start, end),) = bodies(data)
    at, skipped = start, start
    while at < end:
        if at == skipped:
            skipped = skip(data, at, end, calls=False)
            assert skipped >= at
            skipped = step(data, skipped, end) if skipped < end else end
        at = step(data, at, end)
        assert at <= skipped


def test_a_function_that_calls_twice_has_a_poll_at_its_head() -> None:
    data = wasm("(module (memory 1) (func $f) (func call $f) (func call $f call $f) (func call $f loop call $f end))")
    polled = add_polls(data)
    assert (polled.loops, polled.functions) == (1, 2)
    assert [POLL.match(polled.module, *body) is not None for body in bodies(polled.module)] == [
        False,
        False,
        True,
        True,
    ]


def test_more_polls_than_fit_into_a_short_number_are_all_different() -> None:
    polled = add_polls(wasm(f"(module (memory 1) (func {'loop end ' * 3000}))"))
    assert polled.loops == 3000
    assert len(set(POLL.findall(polled.module))) == 3000
    wasmtime.Module.validate(ENGINE, polled.module)
    with pytest.raises(ModuleRefused, match="no room for its 4096 polls"):
        add_polls(wasm(f"(module (memory 1) (func {'loop end ' * 4096}))"))


def test_a_function_that_has_all_reads_of_polls_for_itself_is_refused() -> None:
    own = ["i32.load8_s", "i64.load8_s", "i64.load16_s", "i64.load8_u"]
    for reads in (own[:3], own):
        data = wasm(
            f"(module (memory 1) (func {' '.join(f'(drop ({read} (i32.const 1)))' for read in reads)} (loop nop)))"
        )
        if reads == own:
            with pytest.raises(ModuleRefused, match="no room for its 1 polls"):
                add_polls(data)
        else:
            assert add_polls(data).module.count(b"\x31\x00\x00\x1a") == 1


def test_what_tells_places_in_the_code_is_dropped() -> None:
    kept = '(@custom "producers" "\\00") (@custom "target_features" "\\00")'
    text = f'(module (memory 1) (@custom ".debug_line" "x") (@custom "metadata.code.branch_hint" "y") {kept} (func $f))'
    polled = add_polls(wasm(text)).module
    names = [polled[start + 1 : end][: polled[start]] for kind, _, start, end in sections(polled) if kind == 0]
    assert sorted(names) == [b"name", b"producers", b"target_features"]


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(module)", "no memory"),
        ("(module (memory 0))", "may be empty"),
        ('(module (import "a" "b" (memory 0)))', "may be empty"),
        ("(module (memory 0) (memory 1))", "may be empty"),
        ("(module (memory i64 1))", "flags are 4"),
        ("(module (memory 1 1 shared))", "flags are 3"),
        ('(module (memory 1) (data (i32.const 0) "x"))', "data segment 0 goes to address 0"),
        (f'(module (memory 1) (data (i32.const {PAGE_BYTES - 1}) ""))', f"goes to address {PAGE_BYTES - 1}"),
        ('(module (import "a" "b" (global i32)) (memory 1) (data (global.get 0) "x"))', "no constant"),
        ('(module (memory 1) (data (i32.add (i32.const 1) (i32.const 9000)) "x"))', "no constant"),
    ],
)
def test_a_module_without_an_unused_first_page_is_refused(text: str, why: str) -> None:
    with pytest.raises(ModuleRefused, match=why):
        add_polls(wasm(text))


@pytest.mark.parametrize(
    "text",
    [
        f'(module (memory 1) (data (i32.const {PAGE_BYTES}) "x"))',
        '(module (memory 40000) (data (i32.const -2000000000) "x"))',
        '(module (memory 1) (data "x"))',
        '(module (memory 1) (memory 1) (data (memory 1) (i32.const 0) "x"))',
        '(module (import "a" "b" (func)) (import "a" "c" (table 1 2 (ref null func)))'
        ' (import "a" "d" (global (mut i64))) (import "a" "t" (tag)) (import "a" "e" (memory 1 2)) (func loop end))',
    ],
)
def test_a_module_that_leaves_its_first_page_alone_is_taken(text: str) -> None:
    wasmtime.Module.validate(ENGINE, add_polls(wasm(text)).module)


WHOLE = wasm(
    '(module (import "a" "b" (func)) (import "a" "c" (table 1 2 funcref)) (import "a" "d" (global i32))'
    " (memory 1) (tag $x) (global (mut i64) (i64.const 5)) (elem (i32.const 0) $f)"
    ' (data (i32.const 9000) "abc") (data "xyz") (start 0)'
    ' (func $f (export "f") (param i32) (local i64 f32)'
    " (block (try_table (catch_all 0) loop (br_table 0 1 2 (local.get 0)) end))"
    " (drop (select (result i32) (i32.const 300) (i32.load offset=8 (i32.const 4)) (i32.const 1))) (call 0) (call 0)"
    " (memory.init 1 (i32.const 5000) (i32.const 0) (i32.const 1)) (drop (f64.const 1.5))"
    " (drop (v128.const i32x4 1 2 3 4))))"
)


def test_a_module_that_is_cut_off_anywhere_is_refused_or_is_another_module() -> None:
    add_polls(WHOLE)
    ends = {end for _, _, _, end in sections(WHOLE)} | {8}
    for length in range(len(WHOLE)):
        try:
            add_polls(WHOLE[:length])
        except ModuleRefused:
            continue
        assert length in ends, "cut within a section"


@settings(max_examples=2000)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_that_are_altered_raise_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, byte in changes:
        data[at] = byte
    try:
        polled = add_polls(bytes(data)).module
    except ModuleRefused:
        return
    try:
        wasmtime.Module.validate(ENGINE, bytes(data))
    except wasmtime.WasmtimeError:
        return
    wasmtime.Module.validate(ENGINE, polled)


@given(st.binary(max_size=60))
def test_any_bytes_raise_nothing_else(tail: bytes) -> None:
    for head in (b"", WHOLE[:8], WHOLE[: random.Random(len(tail)).randrange(len(WHOLE))]):
        with contextlib.suppress(ModuleRefused):
            add_polls(head + tail)


# ---- what is compiled can be stopped ------------------------------------------------------------------------------


def one_kind(code: str, more: str = "") -> bytes:
    """A module whose function `run` sets its sign that it has begun, and then runs this code."""
    text = stopping_proof.text_of([code]).replace('export "0"', 'export "run"')
    return wasm(text[:-1] + more + ")")


@pytest.mark.parametrize("kind", stopping_proof.KINDS)
def test_what_goes_on_without_end_is_stopped(kind: str) -> None:
    compiled = wasmtime.Module(ENGINE, add_polls(one_kind(stopping_proof.KINDS[kind])).module)
    assert stopping_proof.stops(ENGINE, compiled, "run", stopping_proof.ENDLESS)


@pytest.mark.parametrize(
    "code", ["(loop $a (br $a))", "(loop $a (loop $b (br $b)))", "(loop $a (call $again) (br $a))"]
)
def test_a_loop_of_one_instruction_that_has_no_end_is_stopped(code: str) -> None:
    compiled = wasmtime.Module(ENGINE, add_polls(one_kind(code, "(func $again (loop nop))")).module)
    ended: list[bool] = []
    thread = threading.Thread(
        target=lambda: ended.append(stopping_proof.stops(ENGINE, compiled, "run", 0)), daemon=True
    )
    thread.start()
    thread.join(30)
    assert ended == [True]


_KINDS = ("i32.load8_s", "i64.load8_s", "i32.load8_u")
READS = [f"(drop ({kind} (i32.const {at})))" for kind in _KINDS for at in range(6)]
ONCE = [
    *READS, "(loop nop)", "(loop (br_if 0 (i32.const 0)))", "(i64.store (i32.const 50000) (local.get $n))", "(nop)",
    "(call $counts (i64.const 1))", "(memory.fill (i32.const 8192) (i32.const 1) (i32.const 9))",
    "(block (br 0) (loop (br 0)))",
]  # fmt: skip
AROUND = [
    "(block {})", "(loop $x {} (br_if $x (i32.const 0)))", "(if (i32.const 1) (then {}))",
    "(loop $x (loop $y {}) (br_if $x (i64.ne (local.get $n) (i64.const 0))))", "(block (try_table (catch_all 0) {}))",
    "(if (i64.eqz (local.get $n)) (then (loop nop)) (else {}))", "(block (block (br_table 0 1 (i32.const 0))) {})",
]  # fmt: skip


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(ONCE), max_size=8),
    st.lists(st.tuples(st.lists(st.sampled_from(ONCE), max_size=3), st.sampled_from(AROUND)), max_size=5),
    st.lists(st.sampled_from([*READS, "nop"]), max_size=3),
)
def test_an_endless_loop_anywhere_among_others_is_stopped(
    before: list[str], around: list[tuple[list[str], str]], inside: list[str]
) -> None:
    code = stopping_proof.KINDS["a loop"].replace("(loop $a", f"(loop $a {' '.join(inside)}")
    for once, form in reversed(around):
        code = form.format(" ".join([*once, code]))
    compiled = wasmtime.Module(ENGINE, add_polls(one_kind(f"{' '.join(before)} {code}")).module)
    assert stopping_proof.stops(ENGINE, compiled, "run", stopping_proof.ENDLESS)


def test_a_compiler_that_drops_polls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safepoints, "poll", lambda _index, _read: bytes.fromhex("41 80 02 2d 00 00 1a"))
    monkeypatch.setattr(stopping_proof, "ENDLESS", 1 << 28)
    with pytest.raises(stopping_proof.CannotStop, match="drops polls: a loop in a loop could not be stopped"):
        stopping_proof.check_stopping(engine.settings())


# ---- images -------------------------------------------------------------------------------------------------------


def test_no_image_is_built_where_guests_could_not_be_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(_config: wasmtime.Config) -> None:
        raise stopping_proof.CannotStop("this Wasmtime drops polls")

    monkeypatch.setattr(stopping_proof, "check_stopping", fails)
    with pytest.raises(ImageError, match="could not be stopped: this Wasmtime drops polls"):
        prepare([ImageSpec("tiny", ())], tmp_path)
    assert list(tmp_path.glob("module-*")) == []


@pytest.mark.parametrize("part", [safepoints, instructions, bulk_memory])
def test_an_image_that_was_made_by_other_polls_is_not_used(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, source = image._module_key(), Path(part.__file__).read_text()
    changed = tmp_path / "changed.py"
    monkeypatch.setattr(part, "__file__", str(changed))
    changed.write_text(f"{source}\nmore = 1\n")
    assert image._module_key() != before
    changed.write_text(f'{source}\n# a remark\n"""What is told of it."""\n')
    assert image._module_key() == before
