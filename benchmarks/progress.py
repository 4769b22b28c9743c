"""What is being done, told on stderr with the seconds since the start."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

Progress = Callable[[str], None]
"""Told what is being done."""

BUSY = 0.5
"""The machine's load from which its times say little."""


def shown(to_trust: str) -> Progress:
    """Return what tells on stderr what is being done. On a busy machine it says first what is `to_trust` then."""
    began = time.perf_counter()

    def progress(text: str) -> None:
        print(f"• {time.perf_counter() - began:4.0f} s  {text}", file=sys.stderr, flush=True)

    load = os.getloadavg()[0]
    if load > BUSY:
        progress(f"this machine is busy already (load {load:.1f}): {to_trust}")
    return progress
