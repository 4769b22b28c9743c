"""Tools of the deployment: a Python entry point or an HTTP endpoint answers them, as the operator says."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from rlm_server.ledger import Amounts
from rlm_server.repl.bounds import cut
from rlm_server.schemas.values import NotJson, read_json
from rlm_server.tools.tool import AskedTool, Tool, read_tools
from rlm_server.webhooks.hosts import AddressRefused, Hosts, WrongUrl

if TYPE_CHECKING:
    import aiohttp

GROUP = "rlm_server.tools"
"""The group of entry points that tools may be."""
MAX_FAILURE = 500
"""Bytes of UTF-8 of why a tool of the deployment failed."""

Answer = Callable[[dict[str, Any], dict[str, str]], Awaitable[Any]]
"""An entry point: an async function of the arguments, and of who calls: tenant_id, run_id and call_id."""


class WrongTool(ValueError):
    """The operator's statement of a tool cannot be used; the message says why."""


class ToolFailed(Exception):
    """A tool gave no result; the message is fit for code and its model to read."""


@dataclass(frozen=True, slots=True)
class DeployedSpec:
    """A tool as the operator states it: `url` or `entry_point` answers. A call costs `nano_usd`, whatever comes of it.

    `tenants` are those that may use it, by names or patterns; all where none is named.
    """

    name: str
    description: str
    arguments_schema: str
    url: str
    entry_point: str
    authorization: str
    seconds: float
    result_bytes: int
    nano_usd: int
    tenants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deployed:
    """A tool of the deployment, ready to be called."""

    spec: DeployedSpec
    tool: Tool
    answer: Answer

    @property
    def model(self) -> str:
        """What the ledger and the events call it, where they name models."""
        return f"tool:{self.spec.name}"

    @property
    def cost(self) -> Amounts:
        """What a call costs."""
        return Amounts(nano_usd=self.spec.nano_usd, calls=1)

    async def call(self, text: str, caller: dict[str, str]) -> str:
        """Call it with arguments, a JSON object as text, and return its result as JSON text, which `check` looks at.

        Raises:
            ToolFailed: it failed, or returned too much.
        """
        name = self.spec.name
        try:
            async with asyncio.timeout(self.spec.seconds):
                result = await self.answer(json.loads(text), caller)
            said = result if isinstance(result, _Written) else json.dumps(result, ensure_ascii=False, allow_nan=False)
        except TimeoutError:
            raise ToolFailed(f"{name} gave no answer within {self.spec.seconds:g} s") from None
        except ToolFailed:
            raise
        except Exception as error:
            raise ToolFailed(cut(f"{name} failed: {type(error).__name__}: {error}", MAX_FAILURE)) from None
        size = len(said.encode("utf-8", "replace"))
        if size > self.spec.result_bytes:
            raise ToolFailed(f"{name} returned {size} bytes, and may return {self.spec.result_bytes}")
        return said

    def check(self, result: str, most_nodes: int) -> None:
        """Refuse a result that is no JSON, or has too many values. The work is linear in its size.

        Raises:
            ToolFailed: it is so.
        """
        try:
            read_json(result, most_nodes)
        except NotJson as error:
            words = f"{self.spec.name} returned what cannot be read: {error}"
            raise ToolFailed(cut(words, MAX_FAILURE)) from None


class _Written(str):
    """A result that is JSON text already."""

    __slots__ = ()


class DeployedTools:
    """The tools of the deployment. It owns the connections to endpoints, and closes them.

    Raises:
        WrongTool: what is stated of one cannot be used.
    """

    def __init__(self, specs: Sequence[DeployedSpec], hosts: Sequence[str] = ()) -> None:
        try:
            self._endpoints = _Endpoints(Hosts(hosts, "tool_hosts"))
        except ValueError as error:
            raise WrongTool(f"tool_hosts: {error}") from None
        self._tools = {spec.name: self._made(spec) for spec in specs}

    def _made(self, spec: DeployedSpec) -> Deployed:
        asked = AskedTool(spec.name, spec.description, spec.arguments_schema)
        tools, wrong = read_tools([asked], spec.seconds, f"deployment_tools.{spec.name}")
        if wrong:
            raise WrongTool("; ".join(f"{one.field}: {one.message}" for one in wrong))
        place = f"deployment_tools.{spec.name}"
        if bool(spec.url) == bool(spec.entry_point):
            raise WrongTool(f"{place}: one of url and entry_point must be given")
        answer = self._endpoints.answer(spec, place) if spec.url else _entry_point(spec.entry_point, place)
        return Deployed(spec, tools[0], answer)

    def of(self, tenant: str) -> dict[str, Deployed]:
        """Return the tools that a tenant may use, by their names."""
        return {
            name: one
            for name, one in self._tools.items()
            if not one.spec.tenants or any(fnmatchcase(tenant, pattern) for pattern in one.spec.tenants)
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoints.close()


def _entry_point(name: str, place: str) -> Answer:
    found = [one for one in entry_points(group=GROUP) if one.name == name]
    if len(found) != 1:
        raise WrongTool(f"{place}.entry_point: there are {len(found)} called {name[:60]!r} in the group {GROUP}, not 1")
    answer = found[0].load()
    if not inspect.iscoroutinefunction(answer):
        raise WrongTool(f"{place}.entry_point: must be an async function, not {type(answer).__name__}")
    loaded: Answer = answer
    return loaded


class _Endpoints:
    """Asks HTTP endpoints: those of the operator's list, at public addresses or listed ones, without redirects."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._client: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()

    def answer(self, spec: DeployedSpec, place: str) -> Answer:
        """Return what asks an endpoint."""
        try:
            self._hosts.check(spec.url)
        except WrongUrl as error:
            raise WrongTool(f"{place}.url: {error}") from None

        async def ask(arguments: dict[str, Any], caller: dict[str, str]) -> _Written:
            return await self._post(spec, {"tool": spec.name, "arguments": arguments, **caller})

        return ask

    async def _post(self, spec: DeployedSpec, body: Mapping[str, Any]) -> _Written:
        headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "rlm-server"}
        if spec.authorization:
            headers["authorization"] = spec.authorization
        client = await self._opened()
        import aiohttp  # which is there by now

        data = json.dumps(body, ensure_ascii=False).encode()
        try:
            async with client.post(spec.url, data=data, headers=headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ToolFailed(f"{spec.name} answered {answer.status}, not 200")
                return _Written((await _read(answer, spec)).decode())
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            if isinstance(error, TimeoutError):
                raise
            below = getattr(error, "os_error", None)  # what aiohttp has wrapped
            words = "its address is not public, and not listed" if isinstance(below, AddressRefused) else "no answer"
            raise ToolFailed(f"{spec.name} cannot be asked: {words} ({type(error).__name__})") from None

    async def _opened(self) -> aiohttp.ClientSession:
        """Return the client, which is imported and made for the first call."""
        async with self._opening:
            if self._client is None:
                await asyncio.to_thread(import_module, "rlm_server.webhooks.resolver")
                import aiohttp

                from rlm_server.webhooks.resolver import PublicResolver

                self._client = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(
                        resolver=PublicResolver(self._hosts), use_dns_cache=False, limit=0, force_close=True
                    ),
                    timeout=aiohttp.ClientTimeout(total=None),
                    trust_env=False,
                    auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


async def _read(answer: aiohttp.ClientResponse, spec: DeployedSpec) -> bytes:
    """Read an answer, and no more of it than it may have."""
    parts, size = list[bytes](), 0
    async for part in answer.content.iter_chunked(1 << 16):
        size += len(part)
        if size > spec.result_bytes:
            raise ToolFailed(f"{spec.name} returned more than {spec.result_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
