"""A receiver of webhooks on loopback, which answers as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from examples.webhook_receiver import verified


@dataclass
class Receiver:
    """What came, and what it is answered: a status, or with None nothing until `let_go`."""

    port: int = 0
    answers: Callable[[int], int | None] = lambda _: 204
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    @property
    def host(self) -> str:
        """How an operator lists it."""
        return f"http://127.0.0.1:{self.port}"

    async def count(self, number: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(30), self.came:
            await self.came.wait_for(lambda: len(self.requests) >= number)

    def events(self, secret: str) -> list[tuple[str, dict[str, Any]]]:
        """What came, each with its id, verified as the example does."""
        return [
            (verified(secret, headers, body, int(headers["webhook-timestamp"])), json.loads(body))
            for headers, body in self.requests
        ]

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with self.came:
            self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
            self.came.notify_all()
        status = self.answers(len(self.requests))
        if status is None:
            await self.let_go.wait()
            status = 204
        moved = {"location": f"http://127.0.0.1:{self.port}/elsewhere"} if 300 <= status < 400 else None
        return web.Response(status=status, headers=moved)


@asynccontextmanager
async def receiving(answers: Callable[[int], int | None] = lambda _: 204) -> AsyncIterator[Receiver]:
    """Serve a receiver."""
    receiver = Receiver(answers=answers)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.port = runner.addresses[0][1]
        yield receiver
    finally:
        receiver.let_go.set()
        await runner.cleanup()
