"""What `RunService.Complete` does besides a run: it keeps the text that came with a question, and minds a deadline."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rlm.v1 import run_pb2

from rlm_server.api.errors import InvalidField
from rlm_server.contexts.context_table import Context, ContextUnknown
from rlm_server.contexts.contexts import Contexts
from rlm_server.contexts.spool import Header
from rlm_server.contexts.uploads import Uploads
from rlm_server.repl.limits import RunLimits
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose

MAX_INLINE_TEXT = 1_000_000
"""Bytes of UTF-8 of a text that comes with its question."""
LAST_SECONDS = 2.0
"""What a run is to leave of the time of its call, for its end to be told."""
LEAST_SECONDS = 1.0
"""What a run has however little its call has left."""


def check_text(request: run_pb2.CompleteRequest) -> None:
    """Refuse a text that is too long, and one beside a context."""
    size = len(request.text.encode())
    if size > MAX_INLINE_TEXT:
        raise InvalidField("text", f"may have {MAX_INLINE_TEXT} bytes, not {size}: upload it, and give its context_id")
    if request.text and request.context_id:
        raise InvalidField("text", "must be empty where there is a context_id")


def within_deadline(limits: RunLimits, context: Any) -> RunLimits:
    """Return limits with no more time than the call has, less what its answer needs."""
    left = context.time_remaining()
    if left is None:
        return limits
    return replace(limits, wall_seconds=min(limits.wall_seconds, max(left - LAST_SECONDS, LEAST_SECONDS)))


class PassingTexts:
    """Keeps texts as contexts that go with the runs over them."""

    def __init__(self, contexts: Contexts, uploads: Uploads, shares: Shares) -> None:
        self._contexts, self._uploads, self._shares = contexts, uploads, shares

    async def keep(self, tenant: str, text: str) -> Context:
        """Keep a text.

        Raises:
            ContextQuotaExceeded: the tenant may not have more.
            Exception: whatever an upload raises.
        """
        data = text.encode()
        header = Header(tenant, None, "", len(data), hashlib.sha256(data).hexdigest(), 0, passing=True)
        begun = await self._uploads.begin(header)
        if isinstance(begun, Context):  # which only one with a request id is
            return begun
        async with begun as upload:
            await self._shares.threads.run(Purpose.UPLOADS, tenant, lambda _: upload.spool.add(0, data))
            return await upload.finish()

    async def drop(self, context: Context) -> None:
        """Delete a text that was kept."""
        with suppress(ContextUnknown):
            await self._contexts.delete(context.tenant, context.id)
