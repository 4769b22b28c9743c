"""Gives memory that was freed back to the system: what one tenant needed for a moment is not to be missed by others."""

from __future__ import annotations

import asyncio
import ctypes
from pathlib import Path

LOOK_SECONDS = 1.0
"""Between two looks at how much memory this process has."""

GROWTH_BYTES = 48 << 20
"""Memory is given back after it has grown by so much."""

_PAGE = 4096
_STATM = Path("/proc/self/statm")


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
