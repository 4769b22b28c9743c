"""The server's certificate: read and tried before it is shown to anyone, and read again when its files change."""

from __future__ import annotations

import logging
import ssl
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from rlm_server.config.settings import ConfigError, Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""The files are looked at no more often than this, when a client connects."""

_SELF_TRUST = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN

Stamp = tuple[tuple[int, int, int], ...]
"""What tells one content of the files from the next, without reading them."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key, and who may connect. All of it is PEM."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: float
    """In Unix seconds."""
    names: tuple[str, ...]
    """The DNS names that it is good for."""

    @property
    def configuration(self) -> Any:
        """The form that gRPC takes."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.client_ca)


def refuse_plaintext(settings: Settings) -> None:
    """Refuse to be reached from other machines without TLS, unless a proxy is said to add it.

    Raises:
        ConfigError: the server would be.
    """
    if settings.tls_cert is None and not settings.plaintext and not is_loopback(settings.listen):
        raise ConfigError(
            f"listen: {settings.listen} is reached from other machines, and without TLS anyone between could read the "
            "keys: set tls_cert and tls_key, or set plaintext = true (RLM_PLAINTEXT=true) where a proxy adds TLS"
        )


def is_loopback(address: str) -> bool:
    """Whether an address host:port is on this machine alone."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def read_certificate(settings: Settings) -> Certificate | None:
    """Read the files that the settings name, and try them in a handshake; None where they name none.

    Raises:
        ConfigError: one is missing or is not what it should be, they do not belong together, the certificate is not
            valid now, or everyone can read the key. The message names the setting and the file.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    _check_kept(settings.tls_key)
    chain, key = _content("tls_cert", settings.tls_cert), _content("tls_key", settings.tls_key)
    client_ca = None if settings.tls_client_ca is None else _content("tls_client_ca", settings.tls_client_ca)
    client = _trusting("tls_cert", settings.tls_cert, chain)
    if settings.tls_client_ca is not None and client_ca is not None:
        _trusting("tls_client_ca", settings.tls_client_ca, client_ca)
    expires, names = _tried(_showing(settings.tls_cert, settings.tls_key), client, settings.tls_cert)
    if (chain, key) != (_content("tls_cert", settings.tls_cert), _content("tls_key", settings.tls_key)):
        raise ConfigError(f"tls_cert: {settings.tls_cert} or its key changed while they were read")
    return Certificate(chain, key, client_ca, expires, names)


class Certificates:
    """Shows clients the newest certificate that is good. May be asked from any thread."""

    def __init__(self, settings: Settings, first: Certificate) -> None:
        self._settings, self.current = settings, first
        self._looking = threading.Lock()
        self._stamp, self._looked = _stamp(settings), time.monotonic()

    def credentials(self) -> Any:
        """Return what gRPC listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self.current.configuration,
            self.renewed,
            require_client_authentication=self.current.client_ca is not None,
        )

    def renewed(self) -> Any:
        """Return the configuration of files that have changed and are good; None where they are as they were.

        Files that have changed and are not good are told of in the log, once, and what was shown before stays.
        """
        with self._looking:
            if time.monotonic() - self._looked < LOOK_SECONDS:
                return None
            self._looked, stamp = time.monotonic(), _stamp(self._settings)
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                found = read_certificate(self._settings)
            except ConfigError as error:
                log.error("the certificate stays as it was: %s", error)  # noqa: TRY400
                return None
            if found is None:
                return None
            self.current = found
            log.warning("the certificate was read again: valid until %s", _date(found.expires))
            return found.configuration


def names_of(peer: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Return whom a client's certificate names: its URIs and DNS names, or where it has none its common name.

    `peer` is what gRPC tells of a connection. It is empty for a client without a certificate.
    """
    found = [*peer.get("peer_uri", ()), *peer.get("peer_dns", ())] or peer.get("x509_common_name", ())
    return tuple(name.decode("utf-8", "replace") for name in found)


def _stamp(settings: Settings) -> Stamp:
    stamps = []
    for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca):
        try:
            found = path.stat() if path is not None else None
        except OSError:
            found = None
        stamps.append((found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else (0, 0, 0))
    return tuple(stamps)


def _check_kept(key: Path) -> None:
    """Refuse a key that every user of the machine may use. A group may: Kubernetes gives secrets to one."""
    with suppress(OSError):  # said where it is read
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & stat.S_IRWXO:
            raise ConfigError(
                f"tls_key: {key} may be used by every user of this machine (mode {mode:o}): run `chmod o= {key}`"
            )


def _content(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from None


def _trusting(setting: str, path: Path, certificates: bytes) -> ssl.SSLContext:
    """Return what checks a certificate against these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= _SELF_TRUST
    try:
        context.load_verify_locations(cadata=certificates.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{setting}: {path} holds no certificate in PEM") from None
    return context


def _showing(chain: Path, key: Path) -> ssl.SSLContext:
    """Return what shows this certificate.

    Raises:
        ConfigError: the key is not in PEM, is encrypted, or is another certificate's.
    """

    def no_password() -> str:
        raise ConfigError(f"tls_key: {key} is encrypted; the server needs it as it is")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chain, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key: {key} is not the key of the certificate in {chain} (tls_cert)") from None
        raise ConfigError(f"tls_key: {key} holds no private key in PEM that fits a certificate") from None
    except OSError as error:
        raise ConfigError(f"tls_cert: {chain} or its key cannot be read: {error.strerror}") from None
    return context


def _tried(server: ssl.SSLContext, client: ssl.SSLContext, path: Path) -> tuple[float, tuple[str, ...]]:
    """Have a client connect to a server in memory. Return when the certificate that it saw expires, and its names.

    Raises:
        ConfigError: it would not connect: the certificate is not valid now, or not one of a server.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server)
    try:
        for side in (asking, serving, asking, serving):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        seen: Any = asking.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"tls_cert: the certificate in {path} is not good: {error.verify_message}") from None
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"tls_cert: nobody can connect with the certificate in {path}: {error}") from None
    names = tuple(name for kind, name in seen.get("subjectAltName", ()) if kind == "DNS")
    return float(ssl.cert_time_to_seconds(seen["notAfter"])), names


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
