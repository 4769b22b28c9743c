"""The page that every loop of a guest reads: how another thread stops a guest, or keeps it from going on for a while.

It is the first of the guest's memory, which the module leaves unused: the far end of its shadow stack. The guest's code
reads it at the head of every loop (`sandbox/vm/safepoints.py`). Where the page may not be read, the next loop traps.
Where the page is missing and this process serves its faults, the guest waits at its next loop.

What the page holds is no part of a guest's state. The host never reads or writes it, as it may be unreadable, and
refuses addresses that a guest names there.
"""

from __future__ import annotations

import threading

from sandbox.memory import memory, missing
from sandbox.vm.safepoints import PAGE_BYTES


class PollPage:
    """The page of one instance, whose memory is at `base`. May be used from any thread, also once it is closed."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._lock = threading.Lock()  # of all below: once closed, the addresses may be another's
        self._closed = False
        self._blocked = False
        self._pausable: bool | None = None  # None where it was not tried
        self._paused = False

    def block(self) -> None:
        """Stop the guest, for good: it traps at its next loop.

        Raises:
            OSError: the kernel refused.
        """
        with self._lock:
            if self._closed or self._blocked:
                return
            memory.forbid(self._base, PAGE_BYTES)
            self._blocked = True
            self._bring()

    def pause(self) -> bool:
        """Have the guest wait at its next loop. Return False where that cannot be done."""
        with self._lock:
            if self._closed or self._blocked:
                return False
            if self._pausable is None:
                self._pausable = missing.serve(self._base, PAGE_BYTES)
            if self._pausable:
                missing.take_away(self._base, PAGE_BYTES)
                self._paused = True
            return self._pausable

    def resume(self) -> None:
        """Let a guest that waits go on."""
        with self._lock:
            if not self._closed:
                self._bring()

    def _bring(self) -> None:
        if self._paused:
            missing.bring(self._base, PAGE_BYTES)
            self._paused = False

    def close(self) -> None:
        """Leave the page alone from now on: the memory is about to be unmapped."""
        with self._lock:
            self._closed = True
