"""Copying and filling in parts does what the instructions do, and leaves the first page alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import wasmtime

from sandbox.vm import engine
from sandbox.vm.bulk_memory import PART_BYTES, SMALL_BYTES, in_parts
from sandbox.vm.instructions import ModuleRefused
from sandbox.vm.safepoints import PAGE_BYTES, add_polls

SIZE = 40 * 65536
FILLED = random.Random(1).randbytes(SIZE - PAGE_BYTES)
EDGES = [
    0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, SIZE - 1, SIZE, SIZE + 1, PART_BYTES, PART_BYTES + 1,
    2 * PART_BYTES + 5, 2**31, 2**32 - PAGE_BYTES, 2**32 - 1,
]  # fmt: skip
NUMBERS = "(param i32 i32 i32)"
ARGUMENTS = "(local.get 0) (local.get 1) (local.get 2)"
WAT = f"""(module (import "a" "b" (func)) (memory (export "memory") 40)
  (func (export "copy") {NUMBERS} (block (memory.copy {ARGUMENTS})))
  (func (export "neither") (param i32) (result i32) (local.get 0))
  (func (export "fill") {NUMBERS} (memory.fill {ARGUMENTS}) (memory.fill {ARGUMENTS})))"""


class Machine:
    """An instance of a module, with its memory filled."""

    def __init__(self, wasm: bytes) -> None:
        made = wasmtime.Engine(engine.settings())
        self._store = wasmtime.Store(made)
        linker = wasmtime.Linker(made)
        linker.define_func("a", "b", wasmtime.FuncType([], []), lambda: None)
        self._exports: Any = linker.instantiate(self._store, wasmtime.Module(made, wasm)).exports(self._store)
        self.memory.write(self._store, FILLED, PAGE_BYTES)

    @property
    def memory(self) -> Any:
        return self._exports["memory"]

    def call(self, name: str, *arguments: int) -> bool:
        """Return whether it did not trap."""
        try:
            self._exports[name](self._store, *((value % 2**32 ^ 2**31) - 2**31 for value in arguments))
        except wasmtime.Trap:
            return False
        return True

    def contents(self) -> bytes:
        return bytes(self.memory.read(self._store, PAGE_BYTES, SIZE))


def both() -> tuple[Machine, Machine]:
    plain = bytes(wasmtime.wat2wasm(WAT))
    return Machine(plain), Machine(add_polls(in_parts(plain)).module)


def test_random_copies_and_fillings_do_what_the_instructions_do() -> None:
    chance = random.Random(20)

    def number() -> int:
        return chance.choice(EDGES) if chance.random() < 0.4 else chance.randrange(PAGE_BYTES, SIZE)

    plain, parted = both()
    done = 0
    while done < 120:
        name = chance.choice(("copy", "fill"))
        to, other, size = number(), number(), number() if chance.random() < 0.5 else chance.randrange(5000)
        if name == "copy" and chance.random() < 0.3:
            other = (to + chance.randrange(-2 * PART_BYTES, 2 * PART_BYTES)) % 2**32
        if size and (to < PAGE_BYTES or (name == "copy" and other < PAGE_BYTES)):
            assert not parted.call(name, to, other, size)
        elif parted.call(name, to, other, size):
            assert plain.call(name, to, other, size)
            done += 1
        else:
            assert not plain.call(name, to, other, size)
        if parted.contents() != plain.contents():  # only one that trapped may have begun
            assert not parted.call(name, to, other, size)
            plain, parted = both()


def test_a_few_bytes_are_copied_and_filled_as_the_instructions_do_it() -> None:
    plain, parted = both()
    end, middle = SIZE, SIZE // 2
    for size in range(SMALL_BYTES + 3):
        near = [middle + by for by in (-size, -size // 2, -1, 0, 1, size // 3, size) if middle + by >= PAGE_BYTES]
        for name, to, other in [
            *(("copy", to, middle) for to in near),
            ("fill", middle - 1, 0x1C3 + size),
            ("copy", end - size, middle), ("copy", PAGE_BYTES, end - size), ("fill", end - size, size),
        ]:  # fmt: skip
            assert plain.call(name, to, other, size)
            assert parted.call(name, to, other, size)
        assert parted.contents() == plain.contents(), size
        if size:
            for name, to, other in [
                ("copy", end - size + 1, middle), ("copy", middle, end - size + 1), ("fill", end - size + 1, 1),
                ("copy", PAGE_BYTES - 1, middle), ("copy", middle, PAGE_BYTES - 1), ("fill", PAGE_BYTES - 1, 1),
            ]:  # fmt: skip
                assert not parted.call(name, to, other, size)
            plain, parted = both()


def test_the_other_functions_and_a_module_without_such_instructions_are_as_they_were() -> None:
    _, parted = both()
    assert parted.call("neither", 1)
    module = bytes(wasmtime.wat2wasm("(module (memory 1) (func (drop (i32.const 0x0afc))))"))
    assert in_parts(module) == module


@pytest.mark.parametrize(
    "wat",
    [
        '(module (memory 1) (data "x") (func (memory.init 0 (i32.const 4096) (i32.const 0) (i32.const 1))))',
        "(module (memory 1) (memory 1) (func (memory.copy 1 0 (i32.const 0) (i32.const 0) (i32.const 0))))",
        "(module (memory 1) (type (struct)) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0))))",
    ],
    ids=["initialising", "a second memory", "types of objects"],
)
def test_what_cannot_be_done_in_parts_is_refused(wat: str) -> None:
    with pytest.raises(ModuleRefused):
        in_parts(bytes(wasmtime.wat2wasm(wat)))
