"""A guest that is no Python at all but an attacker's own module: addresses, lengths and lies at the lowest level."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.door import HostCall, Json
from sandbox.limits import Limits
from sandbox.turn import Status, Stop, Turn
from sandbox.vm import engine, wasi
from sandbox.vm.engine import Program
from sandbox.vm.files import Files, Inode
from sandbox.vm.image import Loaded
from sandbox.vm.instance import FUNCTIONS, Instance
from tests.sandbox.repl import answering, on_thread

SIZE = 2 * 65536
AT = 4096
"""Where the guest's own data begins: the page before it is the one by which it is stopped."""
REQUEST = "{\\22op\\22:\\22a\\22}"  # 10 bytes at address AT, as WAT writes them
HONEST_ALLOC = f"(i32.const {AT + 1024})"

Run = Callable[..., Turn]


@pytest.fixture
def run_module(tmp_path: Path) -> Run:
    """Compile a WAT module as a guest and run one turn of it."""

    def run(wat: str, handler: object = None, limits: Limits | None = None) -> Turn:
        wasm, compiled = tmp_path / "guest.wasm", tmp_path / "guest.cwasm"
        wasm.write_bytes(wasmtime.wat2wasm(wat))
        compiled.unlink(missing_ok=True)  # one that is mapped must not change
        compiled.write_bytes(engine.compile_module(wasm))
        program = Program(compiled, FUNCTIONS, wasi.missing)
        chosen = limits or Limits(turn_seconds=0.5, memory_bytes=SIZE)
        guest = Instance(program, None, chosen, Files(chosen, {"/lib/a": Inode(2, b"abc")}))
        try:
            return on_thread(lambda: guest.run("source", handler or answering(lambda _: "reply"))).result(30)  # type: ignore[arg-type]
        finally:
            guest.close()
            program.close()

    return run


def calls_door(arguments: str, alloc: str = HONEST_ALLOC, expect: int = 0) -> str:
    """A guest that calls the door once and ends well only if the answer is `expect`."""
    return f"""(module
      (import "host" "call" (func $call (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2) (data (i32.const {AT}) "{REQUEST}")
      (global $n (mut i32) (i32.const 0))
      (func (export "host_alloc") (param $size i32) (result i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1)))
        (if (i32.eq (global.get $n) (i32.const 1)) (then (return (i32.const {AT + 2048}))))
        {alloc})
      (func (export "turn") (param i32 i32) (result i32)
        (if (i32.ne (call $call {arguments}) (i32.const {expect})) (then unreachable))
        (i32.const 0)))"""


def constants(*values: int) -> str:
    return " ".join(f"(i32.const {value})" for value in values)


CALL = constants(AT, 10, AT + 512, AT + 516)
"""An honest call's arguments."""


def test_an_honest_guest_is_answered(run_module: Run) -> None:
    assert run_module(calls_door(CALL)).status is Status.OK


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 10, AT + 512, AT + 516),
        (-1, 1, AT + 512, AT + 516),
        (SIZE - 9, 10, AT + 512, AT + 516),
        (SIZE, 1, AT + 512, AT + 516),
        (2**31, 10, AT + 512, AT + 516),
        (AT, SIZE + 1, AT + 512, AT + 516),
        (AT, 10, -1, AT + 516),
        (AT, 10, SIZE - 3, AT + 516),
        (AT, 10, AT + 512, -4),
        (AT, 10, AT + 512, SIZE),
        (0, 10, AT + 512, AT + 516),
        (AT - 1, 10, AT + 512, AT + 516),
        (AT, 10, 0, AT + 516),
        (AT, 10, AT + 512, AT - 4),
    ],
)
def test_addresses_outside_memory_or_in_its_first_page_are_a_fault(run_module: Run, arguments: tuple[int, ...]) -> None:
    assert run_module(calls_door(constants(*arguments), expect=-2)).status is Status.OK


@pytest.mark.parametrize(
    "arguments", [(AT, -1, AT + 512, AT + 516), (-1, -1, -1, -1), (AT + 8, 2**31, AT + 512, AT + 516)]
)
def test_a_length_beyond_the_limit_is_never_read(run_module: Run, arguments: tuple[int, ...]) -> None:
    reached: list[HostCall] = []
    turn = run_module(calls_door(constants(*arguments)), answering(reached.append))
    assert turn.status in (Status.OK, Status.ROLLED_BACK)
    assert reached == []


@pytest.mark.parametrize("outs", [(512, 512), (0, 4), (1024, 1028), (513, 515)])
def test_addresses_that_overlap_hurt_only_the_guest(run_module: Run, outs: tuple[int, int]) -> None:
    assert run_module(calls_door(constants(AT, 10, *(AT + out for out in outs)))).status is Status.OK


@pytest.mark.parametrize(
    "alloc",
    [
        "(i32.const 0)",
        "(i32.const -1)",
        f"(i32.const {SIZE - 2})",
        f"(i32.const {AT - 8})",
        "unreachable",
        "(loop (br 0)) unreachable",
        f"(drop (call $call {CALL})) {HONEST_ALLOC}",
    ],
    ids=["zero", "minus one", "at the end", "in the first page", "traps", "never returns", "calls the door again"],
)
def test_an_allocator_that_lies_ends_its_own_turn(run_module: Run, alloc: str) -> None:
    turn = run_module(calls_door(CALL, alloc))
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type in (Stop.TRAP, Stop.TURN_TIME, Stop.STACK)


def test_an_allocator_that_writes_over_the_request_changes_nothing_that_was_checked(run_module: Run) -> None:
    seen: list[HostCall] = []
    alloc = f"(memory.fill (i32.const {AT}) (i32.const 255) (i32.const 512)) {HONEST_ALLOC}"
    assert run_module(calls_door(CALL, alloc), answering(seen.append)).status is Status.OK
    assert seen == [HostCall("a", {})]


def test_memory_that_grows_while_the_host_answers_is_no_trouble(run_module: Run) -> None:
    alloc = f"(drop (memory.grow (i32.const 16))) (i32.const {SIZE + 100})"
    limits = Limits(turn_seconds=2)
    assert run_module(calls_door(CALL, alloc), None, limits).status is Status.OK


def test_memory_and_tables_stop_at_their_limits(run_module: Run) -> None:
    wat = f"""(module (memory (export "memory") 2) (table $t 1 funcref)
      (func (export "host_alloc") (param i32) (result i32) {HONEST_ALLOC})
      (func (export "turn") (param i32 i32) (result i32)
        (if (i32.ne (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))
        (if (i32.ne (table.grow $t (ref.null func) (i32.const 10000000)) (i32.const -1)) (then unreachable))
        (i32.const 0)))"""
    assert run_module(wat).status is Status.OK


ENDLESS = {
    "copying": f"(loop (memory.copy (i32.const {AT}) (i32.const 1000000) (i32.const 60000000)) (br 0))",
    "copying back": f"(loop (memory.copy (i32.const 1000000) (i32.const {AT}) (i32.const 60000000)) (br 0))",
    "filling": f"(loop (memory.fill (i32.const {AT}) (i32.const 1) (i32.const 65000000)) (br 0))",
    "copying nothing": "(loop (memory.copy (i32.const 0) (i32.const 0) (i32.const 0)) (br 0))",
    "growing": "(loop (drop (memory.grow (i32.const 1))) (br 0))",
    "calling": "(loop (drop (call $host (i32.const 4608) (i32.const 16))) (br 0))",
    "branching": "(loop (br_table 0 0 (memory.size)))",
}


def works(body: str) -> str:
    """A guest whose turn does this."""
    return f"""(module (import "{wasi.MODULE}" "random_get" (func $host (param i32 i32) (result i32)))
      (memory (export "memory") 1000)
      (func (export "host_alloc") (param i32) (result i32) {HONEST_ALLOC})
      (func $turn (export "turn") (param i32 i32) (result i32) {body} unreachable))"""


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_what_goes_on_without_end_is_stopped(run_module: Run, body: str) -> None:
    turn = run_module(works(body), None, Limits(turn_seconds=0.2))
    assert turn.error is not None
    assert turn.error.type is Stop.TURN_TIME


@pytest.mark.parametrize("branches", [1, 2])
def test_recursion_without_a_loop_ends_with_the_stack_or_is_stopped(run_module: Run, branches: int) -> None:
    again = "(drop (call $turn (local.get 0) (local.get 1)))" * branches
    turn = run_module(works(again), None, Limits(turn_seconds=0.5))
    assert turn.error is not None
    assert turn.error.type is Stop.STACK


@pytest.mark.parametrize(
    "body",
    [
        f"(memory.copy (i32.const {AT - 1}) (i32.const 1000000) (i32.const 8))",
        f"(memory.copy (i32.const 1000000) (i32.const {AT - 1}) (i32.const 8))",
        "(memory.copy (i32.const 1000000) (i32.const 0) (i32.const 60000000))",
        "(memory.copy (i32.const -1000) (i32.const 1000000) (i32.const 9000))",
        "(memory.copy (i32.const 1000000) (i32.const -1000) (i32.const 9000))",
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 1))",
        "(memory.fill (i32.const -1000) (i32.const 1) (i32.const 9000))",
    ],
)
def test_copying_and_filling_the_first_page_is_a_fault_of_the_guests(run_module: Run, body: str) -> None:
    turn = run_module(works(body), None, Limits(turn_seconds=20))
    assert turn.error is not None
    assert turn.error.type is Stop.TRAP


def test_a_reply_that_comes_after_the_turns_end_is_not_delivered(run_module: Run) -> None:
    def handler(_: HostCall) -> Future[Json]:
        future: Future[Json] = Future()
        future.cancel()
        return future

    turn = run_module(calls_door(CALL), handler)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED


EDGES = [
    0, 1, 3, 4, 8, 255, 512, AT - 1, AT, AT + 4, AT + 512, SIZE - 8, SIZE - 1, SIZE, 2**31 - 1, 2**31, 2**32 - 8,
    2**32 - 1,
]  # fmt: skip


def wasi_functions(loaded: Loaded) -> dict[str, list[str]]:
    return {
        needed.name: [str(parameter) for parameter in needed.type.params]
        for needed in loaded.program.module.imports
        if needed.module == wasi.MODULE and needed.name is not None and isinstance(needed.type, wasmtime.FuncType)
        and needed.type.results
    }  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_arguments_to_the_system_make_a_host_function_fail(
    loaded: Loaded, run_module: Run, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    known = wasi_functions(loaded)
    chosen = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=12))
    calls, imports = [], []
    for name in dict.fromkeys(chosen):
        parameters = " ".join(known[name])
        imports.append(f'(import "{wasi.MODULE}" "{name}" (func ${name} (param {parameters}) (result i32)))')
    for name in chosen:
        words = []
        for kind in known[name]:
            edges = [*EDGES, 2**63 - 1, 2**64 - 1] if kind == "i64" else EDGES
            words.append(f"({kind}.const {data.draw(st.sampled_from(edges))})")
        calls.append(f"(drop (call ${name} {' '.join(words)}))")
    wat = f"""(module {" ".join(imports)} (memory (export "memory") 2)
      (data (i32.const {AT + 512}) "/tmp/file") (data (i32.const {AT + 4096}) "../../../etc/passwd")
      (func (export "host_alloc") (param i32) (result i32) {HONEST_ALLOC})
      (func (export "turn") (param i32 i32) (result i32) {" ".join(calls)} (i32.const 0)))"""
    caplog.clear()
    turn = run_module(wat, None, Limits(turn_seconds=0.3, memory_bytes=SIZE))
    assert turn.status is Status.OK or (turn.error is not None and turn.error.type is Stop.TURN_TIME), turn
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
