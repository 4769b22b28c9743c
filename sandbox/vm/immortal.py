"""Makes the objects of a golden image immortal, so that using them writes nothing.

CPython counts references in the objects themselves. So merely calling a function of an imported module writes to the
pages it lives in, and each session would soon have its own copy of them. References to an immortal object are not
counted (PEP 683). Every object of a golden image can be immortal, because none is ever freed. Sessions share nearly
all of the image for good, and start, checkpoint and hibernate with a third of the pages.
"""

from __future__ import annotations

import struct

from sandbox.door import HostCall

_MORTAL_BELOW = 1 << 30
_IMMORTAL = 5 << 28
"""`_Py_IMMORTAL_MINIMUM_REFCNT` and `_Py_IMMORTAL_INITIAL_REFCNT` of CPython 3.14 and later on 32 bits (refcount.h)."""

_HEAD = struct.Struct("<II")
"""A PyObject: its count and the address of its type."""


def immortalise(memory: bytearray, call: HostCall) -> int:
    """Make the objects that the guest listed immortal in a copy of its memory, and return how many these are.

    The copy was taken before the guest listed them. Objects that did not exist then are left alone.
    """
    immortal = 0
    for address, kind in call.arguments["found"]:
        if not 0 < address <= len(memory) - _HEAD.size:
            continue
        count, type_then = _HEAD.unpack_from(memory, address)
        if type_then == kind and 0 < count < _MORTAL_BELOW:
            struct.pack_into("<I", memory, address, _IMMORTAL)
            immortal += 1
    return immortal
