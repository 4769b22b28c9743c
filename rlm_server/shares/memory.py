"""The memory of this process: what was freed is given back to the system, and what stays is not looked at in vain."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from sandbox.cancellation import until_ended

LOOK_SECONDS = 1.0
"""Between two looks at how much memory this process has."""

GROWTH_BYTES = 48 << 20
"""Memory is given back after it has grown by so much."""

COLLECTED_AFTER = (3_000, 3, 10)
"""Objects that are new, after which the garbage collector looks at those; and after how many such looks it looks at
what the last ones left, and so on. Python's own (700, 10, 10) has it take a tenth of a busy server's time, as most
objects live for one step of a call. A look at 10,000 objects stops everybody for 10 ms."""

_PAGE = 4096
_STATM = Path("/proc/self/statm")


@asynccontextmanager
async def settled(modules: Sequence[str]) -> AsyncIterator[None]:
    """Import modules in the background, and have the garbage collector leave alone what there is then, and look seldom.

    What is there when a server serves is to stay, and each walk over it stops everybody. A module that is imported when
    the first request needs it stops everybody, too.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTED_AFTER)

    async def settle() -> None:
        await asyncio.to_thread(lambda: [import_module(module) for module in modules])
        gc.freeze()

    settling = asyncio.create_task(settle())
    try:
        yield
    finally:
        await until_ended(settling)
        gc.unfreeze()
        gc.set_threshold(*before)


async def give_back() -> None:
    """Give freed memory back after each growth, until cancelled. Does nothing where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not _resident():
        return
    least = _resident()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        least = min(least, _resident())
        if _resident() > least + GROWTH_BYTES:
            trim(0)  # milliseconds: it walks the free parts of the heap
            least = _resident()


def _resident() -> int:
    """Return the bytes of memory that this process has; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except OSError:
        return 0
