"""Lineage: which parts of a context stand in the prompts of model calls, found while the calls are under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rlm_server.contexts.passages import Traced
from rlm_server.repl.events import CallTraced

if TYPE_CHECKING:  # it comes with numpy, which a server does without until a call is traced
    from rlm_server.contexts.lineage import Lineage

log = logging.getLogger(__name__)

Tell = Callable[[CallTraced], None]


class Tracer:
    """Traces the prompts of one run's, or session's, calls. An async context manager: leaving it waits for the last.

    `open_lineage` gives the index of the context; None where there is no context.
    """

    def __init__(self, open_lineage: Callable[[], Awaitable[Lineage]] | None = None) -> None:
        self._open = open_lineage
        self._lineage: asyncio.Task[Lineage] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._known: dict[str, Traced] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.settle()
        if self._lineage is not None and not self._lineage.done():
            self._lineage.cancel()
            await asyncio.wait([self._lineage])

    async def settle(self) -> None:
        """Wait until every call so far is traced."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def trace(self, call_id: str, prompts: Sequence[str], tell: Tell) -> None:
        """Begin to trace a call; `tell` is told when it is done. Prompts that come again are looked at once."""
        if self._open is None:
            return
        task = asyncio.create_task(self._trace(call_id, prompts, tell))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _trace(self, call_id: str, prompts: Sequence[str], tell: Tell) -> None:
        try:
            passages, more, at = [], False, 0
            for prompt in prompts:
                traced = await self._traced(prompt, keep=len(prompts) > 1)
                passages += [replace(one, prompt_start=at + one.prompt_start) for one in traced.passages]
                more, at = more or traced.more, at + len(prompt)
            tell(CallTraced(call_id, tuple(passages), more))
        except Exception:
            log.exception("call %s could not be traced", call_id)

    async def _traced(self, prompt: str, *, keep: bool) -> Traced:
        if prompt in self._known:
            return self._known[prompt]
        async with self._one_at_a_time:
            if prompt in self._known:  # another call had it looked at meanwhile
                return self._known[prompt]
            if self._lineage is None and self._open is not None:
                self._lineage = asyncio.ensure_future(self._open())
            assert self._lineage is not None  # noqa: S101
            lineage = await asyncio.shield(self._lineage)
            traced = await asyncio.to_thread(lineage.find, prompt)
            if keep:
                self._known[prompt] = traced
            return traced
