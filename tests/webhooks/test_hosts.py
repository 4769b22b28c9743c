"""Events are sent to hosts that the operator lists, and of them only to public addresses, or to listed ones."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from rlm_server.webhooks.hosts import AddressRefused, Hosts, WrongUrl
from rlm_server.webhooks.resolver import PublicResolver

LISTED = ("hooks.example.com", "*.example.org", "http://plain.example.net", "odd.example.com:8443", "10.1.0.0/16",
          "http://127.0.0.1:8080", "[::1]:9")  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/a?b=c",
        "https://hooks.example.com:443/",
        "https://HOOKS.example.com/",
        "https://a.b.example.org",
        "http://plain.example.net/",
        "https://plain.example.net/",
        "https://odd.example.com:8443/",
        "http://127.0.0.1:8080/x",
        "https://[::1]:9/",
    ],
)
def test_a_listed_host_may_be_sent_to(url: str) -> None:
    Hosts(LISTED).check(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "begins with https://"),
        ("hooks.example.com", "begins with https://"),
        ("ftp://hooks.example.com/", "begins with https://"),
        ("https:///x", "begins with https://"),
        ("https://hooks.example.com:x/", "begins with https://"),
        ("https://hooks.example.com/ x", "begins with https://"),
        ("https://hooks.example.com/\\r\\nx", "begins with https://"),
        ("https://h\\u00f6oks.example.com/", "begins with https://"),
        ("https://[::1", "begins with https://"),
        ("https://hooks.example.com/" + "x" * 2_000, "2000 characters"),
        ("https://user@hooks.example.com/", "no user"),
        ("https://hooks.example.com/#x", "no user, no password and no fragment"),
        ("http://hooks.example.com/", "webhook_hosts"),
        ("https://hooks.example.com:8443/", "webhook_hosts"),
        ("https://odd.example.com/", "webhook_hosts"),
        ("https://hooks.example.com.evil.net/", "webhook_hosts"),
        ("https://example.org/", "webhook_hosts"),
        ("https://10.1.2.3/", "webhook_hosts"),
        ("https://169.254.169.254/", "webhook_hosts"),
        ("http://127.0.0.1/", "webhook_hosts"),
        ("http://127.1:8080/", "webhook_hosts"),
    ],
)
def test_any_other_url_is_refused_with_what_is_wrong(url: str, message: str) -> None:
    with pytest.raises(WrongUrl, match=message):
        Hosts(LISTED).check(url.encode().decode("unicode_escape"))


def test_nothing_may_be_sent_where_nothing_is_listed() -> None:
    with pytest.raises(WrongUrl, match="webhook_hosts"):
        Hosts().check("https://hooks.example.com/")


@pytest.mark.parametrize("entry", ["", "https://x.example.com", "a b", "x.example.com/path", "x:99999", "http://"])
def test_an_entry_that_is_no_host_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host, host:port, http://host or network"):
        Hosts([entry])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
     "2002:a00:1::", "::ffff:169.254.169.254"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not Hosts(["hooks.example.com"]).allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "10.1.2.3", "127.0.0.1", "::1", "::ffff:8.8.8.8"])
def test_public_addresses_and_listed_ones_are_not(address: str) -> None:
    assert Hosts(LISTED).allows(ipaddress.ip_address(address))


class Names(AbstractResolver):
    """Knows where one host is."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


async def test_a_host_is_resolved_and_refused_where_one_of_its_addresses_is_not_public() -> None:
    hosts = Hosts(["hooks.example.com", "10.1.0.0/16"])
    (found,) = await PublicResolver(hosts, Names("8.8.8.8")).resolve("hooks.example.com", 443)
    assert (found["host"], found["port"]) == ("8.8.8.8", 443)
    assert len(await PublicResolver(hosts, Names("8.8.8.8", "10.1.0.9")).resolve("hooks.example.com")) == 2
    with pytest.raises(AddressRefused, match="not public"):
        await PublicResolver(hosts, Names("8.8.8.8", "10.2.0.1")).resolve("hooks.example.com")
