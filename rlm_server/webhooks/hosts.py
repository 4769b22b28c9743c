"""Which addresses events may be sent to: those of hosts that the operator lists, and of them only public ones.

An entry of the list is a host or a pattern of hosts (`hooks.example.com`, `*.example.com`), each with its port where
that is not the scheme's usual one; `http://` before it allows that scheme, too. An address or a network (`10.0.0.0/8`)
allows addresses that are not public.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

MAX_URL = 2_000
"""Characters of a URL."""
_ENTRY = re.compile(r"(?P<http>http://)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.*_-]+)(:(?P<port>[0-9]{1,5}))?")
_PORTS = {"https": 443, "http": 80}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class WrongUrl(ValueError):
    """A URL may not be a webhook's; the message says why."""


class AddressRefused(OSError):
    """A host has an address that nothing is sent to."""


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str
    port: int | None
    http: bool

    def allows(self, url: SplitResult) -> bool:
        if url.scheme == "http" and not self.http:
            return False
        usual = _PORTS[url.scheme]
        port = usual if self.port is None else self.port
        return fnmatchcase(url.hostname or "", self.host) and (usual if url.port is None else url.port) == port


class Hosts:
    """The hosts that the operator lists, in a setting.

    Raises:
        ValueError: an entry is none; the message names it.
    """

    def __init__(self, listed: Sequence[str] = (), setting: str = "webhook_hosts") -> None:
        self.setting = setting
        self._entries: list[_Entry] = []
        self._networks: list[Network] = []
        for one in listed:
            self._list(one.strip().lower())

    def _list(self, text: str) -> None:
        network = _network(text)
        if network is not None:
            self._networks.append(network)
            if network.num_addresses > 1:
                return
            text = f"[{text}]" if network.version == 6 else text
        found = _ENTRY.fullmatch(text)
        if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65536):
            raise ValueError(f"{text[:100]!r} is no host, host:port, http://host or network")
        host = found["host"].strip("[]")
        own = _network(host)
        if own is not None:
            self._networks.append(own)
        self._entries.append(
            _Entry(host, None if found["port"] is None else int(found["port"]), found["http"] is not None)
        )

    def check(self, url: str) -> None:
        """Refuse a URL that no event may be sent to.

        Raises:
            WrongUrl: its form or its host is wrong.
        """
        if len(url) > MAX_URL:
            raise WrongUrl(f"may have {MAX_URL} characters, not {len(url)}")
        try:
            parts = urlsplit(url)
            known = parts.scheme in _PORTS and parts.hostname not in (None, "") and parts.port != 0
        except ValueError:
            known = False
        if not known or not url.isascii() or not url.isprintable() or " " in url:
            raise WrongUrl("must be a URL that begins with https://")
        if parts.username is not None or parts.fragment:
            raise WrongUrl("must have no user, no password and no fragment")
        if not any(entry.allows(parts) for entry in self._entries):
            raise WrongUrl(f"{parts.hostname!r} is none of the hosts that this server sends to ({self.setting})")
        address = address_of(parts.hostname or "")
        if address is not None and not self.allows(address):
            raise WrongUrl(f"{parts.hostname!r} is no public address, and not listed as one ({self.setting})")

    def allows(self, address: Address) -> bool:
        """Whether an address is public, or one that the operator lists."""
        inner = _inner(address)
        return any(inner in network for network in self._networks) or (inner.is_global and not inner.is_multicast)


def _inner(address: Address) -> Address:
    """The address of the fourth version that one of the sixth stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def address_of(host: str) -> Address | None:
    """Return the address that a text is; None where it is none."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None
