"""How long a turn's code waited for models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

MODEL_OPS = frozenset({"llm_query", "rlm_query"})
"""Requests that models answer."""


class Awaited:
    """Counts the time in which at least one request of a turn waits for models."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._under_way = 0

    def request(self, op: str) -> AbstractContextManager[None]:
        """Count a request while the context is open, where models answer it."""
        return self._counted() if op in MODEL_OPS else nullcontext()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.seconds += time.monotonic() - self._since
