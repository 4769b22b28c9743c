"""Wasmtime: its settings, the compiled module, and calls in both directions.

Everything this project uses of wasmtime-py's private names is in this module. The public way through `Caller` and
`Memory.read` costs 185 µs for each host call; the raw one used here about 10 µs, and it keeps clear of the exception
slot that wasmtime-py shares between all threads.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import _bindings as raw

from sandbox.vm.bulk_memory import in_parts
from sandbox.vm.clock_thread import ClockThread
from sandbox.vm.inlining import inline
from sandbox.vm.safepoints import add_polls

log = logging.getLogger(__name__)

WASM_STACK_BYTES = 2 << 20
"""What Wasmtime allows at most without its asynchronous stacks."""
THREAD_STACK_BYTES = 16 << 20
"""Native stack of a thread that runs guests: room for `WASM_STACK_BYTES` and for the host's own frames."""

ERRNO_INVAL = 28

_Words = ctypes.POINTER(ctypes.c_uint32)
_Longs = ctypes.POINTER(ctypes.c_uint64)
_Callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _Words, ctypes.c_size_t)
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))


class GuestStopped(Exception):
    """The guest trapped or was stopped; its store must not be used again."""

    def __init__(self, message: str, *, stack_overflow: bool = False) -> None:
        super().__init__(message)
        self.stack_overflow = stack_overflow


class _OnThisThread(threading.local):
    guest: Any = None


current = _OnThisThread()
"""`current.guest`: the guest that runs on this thread; host functions find their guest by it."""


def settings() -> wasmtime.Config:
    """Return the settings that guests are compiled and run with. Only what the module needs is on.

    Tail calls are off: a function that calls itself so would be a loop without a safepoint.
    """
    config = wasmtime.Config()
    config.wasm_exceptions = True
    config.wasm_gc = True
    config.wasm_tail_call = False
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_component_model = False
    config.max_wasm_stack = WASM_STACK_BYTES
    return config


HostFunction = Callable[..., int | None]
"""Takes the guest and the call's arguments as unsigned integers; returns the result, or None to stop the guest."""


@dataclass(frozen=True, slots=True)
class Direct:
    """A host function that is called so often that its arguments are not made ready for it.

    It takes the guest and the values of the call as they lie in memory: words of 32 bits, of which each argument has
    four. It returns the result.
    """

    function: Callable[[Any, Any], int]


class Program:
    """A compiled guest with its host functions: one in a process, shared by every instance.

    `functions` maps (module, name) to the host functions that the guest may import. An import that is not in the
    mapping is answered by `missing`, with an error like `ENOSYS`.
    """

    def __init__(
        self, compiled: Path, functions: Mapping[tuple[str, str], HostFunction | Direct], missing: HostFunction
    ) -> None:
        self.engine = wasmtime.Engine(settings())
        self.module = wasmtime.Module.deserialize_file(self.engine, str(compiled))
        self.clock = ClockThread()
        self._linker = wasmtime.Linker(self.engine)
        self._kept: list[object] = []  # ctypes callbacks live only as long as Python holds them
        for needed in self.module.imports:
            if isinstance(needed.type, wasmtime.FuncType) and needed.name is not None:
                function = functions.get((needed.module, needed.name), missing)
                self._define(needed.module, needed.name, needed.type, function)

    def _define(self, module: str, name: str, type_: wasmtime.FuncType, function: HostFunction | Direct) -> None:
        call = _direct(name, function.function) if isinstance(function, Direct) else _called(name, type_, function)
        callback = _Callback(call)
        self._kept += [callback, type_]
        pointer = ctypes.cast(callback, raw.wasmtime_func_unchecked_callback_t)
        error = raw.wasmtime_linker_define_func_unchecked(
            self._linker.ptr(), module.encode(), len(module), name.encode(), len(name), type_.ptr(), pointer, None,
            _NO_FINALIZER,
        )  # fmt: skip
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)

    def instantiate(self, memory_bytes: int) -> Machine:
        """Make an instance with empty state whose linear memory may grow to `memory_bytes`."""
        return Machine(self.engine, self._linker, self.module, memory_bytes)

    def close(self) -> None:
        """Stop the clock. No guest must run afterwards."""
        self.clock.close()


def _called(name: str, type_: wasmtime.FuncType, function: HostFunction) -> Callable[[int, int, Any, int], int]:
    """Return what Wasmtime calls where the guest calls this function."""
    wide = [str(parameter) == "i64" for parameter in type_.params]
    has_result, any_wide, end = bool(type_.results), any(wide), 4 * len(wide)

    def call(_env: int, _caller: int, words: Any, _count: int) -> int:
        try:
            arguments = words[0:end:4] if end else []  # a value has 16 bytes
            if any_wide:
                longs = ctypes.cast(words, _Longs)
                arguments = [longs[2 * i] if wide[i] else word for i, word in enumerate(arguments)]
            result = function(current.guest, *arguments)
        except Exception:  # never raise into Wasmtime
            log.exception("host function %s failed", name)
            result = ERRNO_INVAL
        if result is None:
            message = f"stopped in {name}".encode()
            return ctypes.cast(raw.wasmtime_trap_new(message, len(message)), ctypes.c_void_p).value or 0
        if has_result:
            words[0] = result
        return 0

    return call


def _direct(name: str, function: Callable[[Any, Any], int]) -> Callable[[int, int, Any, int], int]:
    def call(_env: int, _caller: int, words: Any, _count: int) -> int:
        try:
            words[0] = function(current.guest, words)
        except Exception:  # never raise into Wasmtime
            log.exception("host function %s failed", name)
            words[0] = ERRNO_INVAL
        return 0

    return call


def compile_module(wasm: Path) -> bytes:
    """Compile a module with polls to the form `Program` loads. Takes minutes of processor time and gigabytes of memory.

    Raises:
        ModuleRefused: polls cannot be put into it.
    """
    polled = add_polls(in_parts(inline(wasm.read_bytes()))).module
    return bytes(wasmtime.Module(wasmtime.Engine(settings()), polled).serialize())


class Machine:
    """One instance of the guest, below everything Python: its memory, and calls of its exports."""

    def __init__(
        self, engine: wasmtime.Engine, linker: wasmtime.Linker, module: wasmtime.Module, memory_bytes: int
    ) -> None:
        self._store = wasmtime.Store(engine)
        self.limit_memory(memory_bytes)
        self._context = raw.wasmtime_store_context(self._store.ptr())
        exports: Any = linker.instantiate(self._store, module).exports(self._store)
        self._memory = exports["memory"]
        self._exports = {name: _Export(self._context, exports[name]) for name in ("turn", "host_alloc")}
        # The memory never moves: its whole 4 GiB range is reserved at once.
        self.base: int = ctypes.addressof(self._memory.data_ptr(self._store).contents)

    def limit_memory(self, memory_bytes: int) -> None:
        """Let linear memory grow to this size and no further."""
        self._store.set_limits(memory_size=memory_bytes, table_elements=100_000, instances=1, tables=4, memories=1)

    @property
    def size(self) -> int:
        """Bytes of linear memory now."""
        return int(raw.wasmtime_memory_data_size(self._context, ctypes.byref(self._memory._memory)))

    def grow(self, size: int) -> None:
        """Grow linear memory to at least `size` bytes.

        Raises:
            MemoryError: the memory's limit is below that.
        """
        missing = size - self.size
        if missing > 0:
            try:
                self._memory.grow(self._store, -(-missing // 65536))
            except wasmtime.WasmtimeError as error:
                raise MemoryError(f"the guest's memory cannot grow to {size} bytes") from error

    def call(self, export: str, *arguments: int) -> int:
        """Call an export of 32-bit integers and return its result, unsigned.

        Raises:
            GuestStopped: the guest trapped, which is also how it is stopped.
        """
        return self._exports[export](arguments)

    def close(self) -> None:
        """Free the memory."""
        self._store.close()


class _Export:
    """An exported function with all that a call needs made ready. It must not be called within itself."""

    def __init__(self, context: Any, function: Any) -> None:
        self._function = function  # what the arguments below point into
        self._values = (ctypes.c_uint32 * 16)()
        self._trap = ctypes.POINTER(raw.wasm_trap_t)()
        self._arguments = (
            context, ctypes.byref(function._func),
            ctypes.cast(self._values, ctypes.POINTER(raw.wasmtime_val_raw_t)), 4, ctypes.byref(self._trap),
        )  # fmt: skip

    def __call__(self, arguments: tuple[int, ...]) -> int:
        for i, argument in enumerate(arguments):
            self._values[4 * i] = argument
        error = raw.wasmtime_func_call_unchecked(*self._arguments)
        if error:
            raise GuestStopped(str(wasmtime.WasmtimeError._from_ptr(error)))
        if self._trap:
            fault = wasmtime.Trap._from_ptr(self._trap)
            code = fault.trap_code
            cause = code.name.lower().replace("_", " ") if code else "an error of the host's"
            overflow = code is wasmtime.TrapCode.STACK_OVERFLOW
            raise GuestStopped(f"the interpreter crashed: {cause}", stack_overflow=overflow)
        return int(self._values[0])
