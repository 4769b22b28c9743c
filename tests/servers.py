"""A server in this process, on a free port of loopback, with scripted models."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from rlm_server.broker.providers.registry import with_keys
from rlm_server.broker.providers.scripted import Script, ScriptedProvider
from rlm_server.config.described import PREFIX
from rlm_server.config.settings import Settings
from rlm_server.config.sources import FILE_VARIABLE, OTHER_VARIABLES
from rlm_server.ledger import Limit
from rlm_server.server import Running, image_specs, serving
from rlm_server.tenants.terms import OwnTerms
from sandbox.vm.image import Loaded, prepare
from tests.system.stage import USD, Caller, provider_of

Served = Callable[..., AbstractAsyncContextManager["Server"]]


@pytest.fixture(scope="session")
def images() -> Iterator[Loaded]:
    """The server's golden images, loaded once for all servers of these tests."""
    made = prepare(image_specs(Settings.load()))
    yield made
    made.program.close()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting and no provider's key comes from outside the tests."""
    others = OTHER_VARIABLES.keys() - {FILE_VARIABLE}
    settings = [name for name in os.environ if name.upper().startswith(PREFIX) and name not in others]
    for name in (*settings, *(spec.key_variable for spec in with_keys())):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Server:
    """A server that runs, its caller, and where its data are."""

    running: Running
    data_dir: Path
    caller: Caller
    stack: AsyncExitStack

    @property
    def provider(self) -> ScriptedProvider:
        return provider_of(self.running)

    def another(self, key: str | None = "", *, plain: bool = False) -> Caller:
        """Another client: of the same tenant, unless a key is given; None sends none."""
        caller = Caller(self.running.address, self.running.key if key == "" else key, plain=plain)
        self.stack.push_async_callback(caller.channel.close, None)
        return caller

    async def tenant(self, name: str, usd: int = 10) -> Caller:
        """A client of another tenant."""
        await self.running.tenants.create(name, OwnTerms(budget=Limit(nano_usd=usd * USD)), {})
        _, key = await self.running.keys.create(name)
        return self.another(key)


@asynccontextmanager
async def started(
    golden: Loaded, data_dir: Path, script: Script, others: Mapping[str, Script] = MappingProxyType({}), **settings: Any
) -> AsyncIterator[Server]:
    """Start a server with its data in a directory. The script plays the model "play"; `others` play others, by name."""
    scripts = {"play": script, **others}
    hurry = settings.pop("hurry", None)
    given = {"data_dir": data_dir, "listen": "127.0.0.1:0", "drain_seconds": 0, "grace_seconds": 0.2, **settings}
    loaded = Settings.load(**given)
    ready = None if loaded.images else golden  # one with images of its own loads them
    async with (
        serving(loaded, scripts=scripts, loaded=ready, hurry=hurry) as running,
        AsyncExitStack() as stack,
    ):
        served = Server(running, given["data_dir"], Caller(running.address, running.key), stack)
        stack.push_async_callback(served.caller.channel.close, None)
        yield served


@pytest.fixture
def server(images: Loaded, tmp_path: Path) -> Served:
    """Start a server: `async with server(script, **settings) as served`. The script plays the one model, "play"."""

    def start(
        script: Script, others: Mapping[str, Script] = MappingProxyType({}), **settings: Any
    ) -> AbstractAsyncContextManager[Server]:
        return started(images, settings.pop("data_dir", tmp_path / "data"), script, others, **settings)

    return start
