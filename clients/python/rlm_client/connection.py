"""Where the server is, which key to show it, and a channel that keeps the key private."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import grpc

from rlm_client.errors import NoKey, PlaintextRefused

DEFAULT_TARGET = "127.0.0.1:7400"

KEY_FILE = "development-key"

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A dead connection under a quiet watch is noticed. Servers allow pings from every ten seconds on.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """An open channel, and the metadata every call on it carries."""

    target: str
    channel: grpc.Channel
    metadata: tuple[tuple[str, str], ...] = field(repr=False)


def find_target(target: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Choose the server's address: the one given, else `RLM_SERVER`, else 127.0.0.1:7400.

    Raises:
        ValueError: the one given is empty.
    """
    if target == "":
        raise ValueError("the server's address is empty: leave it out, or pass host:port")
    return environment.get("RLM_SERVER", "") or DEFAULT_TARGET if target is None else target


def find_key(key: str | None, target: str, environment: Mapping[str, str] = os.environ) -> str:
    """Choose the key: the one given, else `RLM_API_KEY`, else the one a development server on this machine wrote.

    Raises:
        NoKey: there is none, or the one given is empty.
        ValueError: it holds characters that no key has.
    """
    api_key = (environment.get("RLM_API_KEY", "") if key is None else key).strip()
    path = data_directory(environment) / KEY_FILE
    if not api_key and key is None and is_local(target):
        try:
            api_key = path.read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError):
            api_key = ""
        except (OSError, UnicodeDecodeError) as error:
            raise NoKey(f"cannot read the development key in {path}: {error}") from None
    if not api_key:
        raise NoKey(
            f"no key for {target}: pass one, set RLM_API_KEY, or start a development server on this machine, "
            f"which writes {path}"
        )
    if not all("!" <= character <= "~" for character in api_key):
        raise ValueError("the key holds spaces, control characters or non-ASCII characters; copy it again")
    return api_key


def data_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Give a local server's data directory: `$RLM_DATA_DIR`, `$XDG_DATA_HOME/rlm-server`, ~/.local/share/rlm-server."""
    if chosen := environment.get("RLM_DATA_DIR", ""):
        return Path(chosen)
    shared = environment.get("XDG_DATA_HOME", "")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "rlm-server"


def is_local(target: str) -> bool:
    """Tell whether a gRPC target surely stays on this machine: loopback or a Unix socket."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = rest.removeprefix("///")  # after "//" comes a name server, which may say anything
    return all(_is_loopback(_host(address)) for address in target.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def connect(
    target: str, key: str, *, tls: bool = False, root_certificates: bytes | None = None, allow_plaintext: bool = False
) -> Connection:
    """Open a channel; the first call connects.

    `root_certificates` are PEM, for a server whose certificate the system does not know.

    Raises:
        PlaintextRefused: without TLS, the target is not on this machine, and `allow_plaintext` is not set.
    """
    if tls:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(root_certificates), grpc.access_token_call_credentials(key)
        )
        return Connection(target, grpc.secure_channel(target, credentials, options=_OPTIONS), ())
    if not is_local(target) and not allow_plaintext:
        raise PlaintextRefused(
            f"{target} is not on this machine and the connection is not encrypted: anyone between could read the key; "
            "use TLS (tls=True, --tls), or allow_plaintext=True (--allow-plaintext) on a network you trust"
        )
    # Without TLS a proxy named in the environment would read the key.
    channel = grpc.insecure_channel(target, options=(*_OPTIONS, ("grpc.enable_http_proxy", 0)))
    return Connection(target, channel, (("authorization", f"Bearer {key}"),))
