"""Looks hosts up for the client that sends events, and refuses those at addresses that nothing may be sent to."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from rlm_server.webhooks.hosts import AddressRefused, Hosts, address_of


class PublicResolver(AbstractResolver):
    """Resolves hosts, and refuses those that have an address which nothing may be sent to.

    The addresses that were checked are those that are connected to.
    """

    def __init__(self, hosts: Hosts, inner: AbstractResolver | None = None) -> None:
        self._hosts, self._inner = hosts, inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return where a host is.

        Raises:
            AddressRefused: it is at an address that is not public.
            OSError: it is not known.
        """
        found = await self._inner.resolve(host, port, family)
        for one in found:
            address = address_of(one["host"])
            if address is None or not self._hosts.allows(address):
                words = f"{host} is at an address that is not public, and not listed ({self._hosts.setting})"
                raise AddressRefused(words)
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._inner.close()
