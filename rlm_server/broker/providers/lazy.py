"""A provider that is made when the first call needs it, because what it imports would delay the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rlm_server.broker.provider import Failure, ModelReply, ModelRequest, Provider, ProviderError

log = logging.getLogger(__name__)


class LazyProvider:
    """Stands for the provider that `make` returns. `make` is called once, in a thread, and again only if it failed."""

    def __init__(self, name: str, make: Callable[[], Provider]) -> None:
        self._name = name
        self._make = make
        self._making: asyncio.Task[Provider] | None = None

    @property
    def made(self) -> bool:
        """Whether the provider is there."""
        making = self._making
        return making is not None and making.done() and not making.cancelled() and making.exception() is None

    async def ready(self) -> Provider:
        """Return the provider, which is made if it was not yet. Nothing is sent.

        All callers that wait share one call of `make`. A cancelled caller does not cancel it.

        Raises:
            ProviderError: it could not be made (INTERNAL).
        """
        if self._making is None:
            self._making = asyncio.create_task(asyncio.to_thread(self._make))
        making = self._making
        try:
            return await asyncio.shield(making)
        except Exception:
            if self._making is making:
                log.exception("the provider %s could not be made", self._name)
                self._making = None
        # Raised outside the handler, so that it carries no reference to what was wrong here.
        words = f"this server could not make its provider {self._name} ready; nothing was sent"
        raise ProviderError(Failure.INTERNAL, words, billed=False)

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Make one attempt.

        Raises:
            ProviderError: the attempt failed.
        """
        provider = await self.ready()
        return await provider.complete(request)

    async def close(self) -> None:
        """Release connections, where there are any."""
        if self._making is not None:
            await asyncio.wait([self._making])
            if not self._making.exception():
                await self._making.result().close()
