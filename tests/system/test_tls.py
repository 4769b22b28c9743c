"""The server speaks TLS, shows a new certificate once its files have changed, and knows clients by theirs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from rlm.v1 import server_pb2, server_pb2_grpc
from rlm_client.client import Client

from rlm_server.api import certificates
from rlm_server.config.settings import ConfigError, Settings
from tests.certificates import Authority, Issued
from tests.servers import Served, Server
from tests.system.stage import Play, refusal

AUTHORITY = Authority()
OTHER = Authority("another authority")


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 0.0)


@asynccontextmanager
async def connected(served: Server, authority: Authority, shown: Issued | None = None) -> AsyncIterator[Any]:
    """A stub of a client that trusts an authority and may show a certificate."""
    own = (shown.key, shown.chain) if shown is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, *own)
    async with grpc.aio.secure_channel(served.running.address, credentials) as channel:
        yield server_pb2_grpc.ServerServiceStub(channel)


async def info(stub: Any, key: str | None) -> Any:
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    return await stub.GetQuota(server_pb2.GetQuotaRequest(), metadata=metadata, timeout=30)


async def trusts(served: Server, authority: Authority, shown: Issued | None = None) -> bool:
    """Whether a client that connects anew, and trusts an authority, is served."""
    async with connected(served, authority, shown) as stub:
        try:
            await info(stub, served.running.key)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


async def test_a_client_that_trusts_its_authority_is_served_and_one_without_tls_is_not(
    server: Served, tmp_path: Path
) -> None:
    async with server(Play(""), **AUTHORITY.issue().written(tmp_path / "tls")) as served:
        assert await trusts(served, AUTHORITY)
        assert not await trusts(served, OTHER)
        with pytest.raises(grpc.aio.AioRpcError) as plain:
            await served.caller.get("run-x")
        assert plain.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_new_certificate_is_shown_once_its_files_have_changed(server: Served, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    own = AUTHORITY.issue().written(folder)
    async with server(Play(""), **own) as served, connected(served, AUTHORITY) as held:
        await info(held, served.running.key)
        OTHER.issue().written(folder)
        assert await trusts(served, OTHER)
        assert not await trusts(served, AUTHORITY)
        await info(held, served.running.key)  # a connection goes on as it began


async def test_a_bad_certificate_is_told_of_and_the_one_before_stays(
    server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tls"
    good = AUTHORITY.issue()
    async with server(Play(""), **good.written(folder)) as served:
        for bad in (
            Issued(OTHER.issue().chain, good.key),
            OTHER.issue(ends=timedelta(minutes=-1)),
            Issued(b"nonsense", b"nonsense"),
        ):
            caplog.clear()
            bad.written(folder)
            with caplog.at_level(logging.ERROR):
                assert await trusts(served, AUTHORITY)
                assert await trusts(served, AUTHORITY)
            told = [record for record in caplog.records if "the certificate stays as it was" in record.message]
            assert len(told) == 1
        OTHER.issue().written(folder)
        assert await trusts(served, OTHER)


async def test_a_certificate_that_is_replaced_before_its_key_is_shown_with_its_key(
    server: Served, tmp_path: Path
) -> None:
    folder = tmp_path / "tls"
    async with server(Play(""), **AUTHORITY.issue().written(folder)) as served:
        new = OTHER.issue()
        (folder / "server.pem").write_bytes(new.chain)
        assert await trusts(served, AUTHORITY)
        (folder / "server.key").write_bytes(new.key)
        assert await trusts(served, OTHER)


WRONG: dict[str, tuple[Issued, str]] = {
    "expired": (AUTHORITY.issue(ends=timedelta(minutes=-1)), "tls_cert: .*server.pem is not good: .*expired"),
    "not valid yet": (AUTHORITY.issue(begins=timedelta(hours=1)), "tls_cert: .*server.pem is not good: .*not yet"),
    "another's key": (Issued(AUTHORITY.issue().chain, AUTHORITY.issue().key), "tls_key: .* not the key of"),
    "no certificate": (Issued(b"text", AUTHORITY.issue().key), "tls_cert: .*server.pem holds no certificate in PEM"),
    "empty": (Issued(b"", AUTHORITY.issue().key), "tls_cert: .*server.pem holds no certificate in PEM"),
    "a key for a certificate": (Issued(AUTHORITY.issue().key, AUTHORITY.issue().key), "tls_cert: .* no certificate"),
    "no key": (Issued(AUTHORITY.issue().chain, b"text"), "tls_key: .*server.key holds no private key in PEM"),
    "an encrypted key": (AUTHORITY.issue(password=b"secret"), "tls_key: .*server.key is encrypted"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_files_that_would_not_do_are_refused_at_the_start_by_name(
    server: Served, tmp_path: Path, case: str
) -> None:
    issued, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        async with server(Play(""), **issued.written(tmp_path / "tls")):
            pass


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601, 0o777])
async def test_a_key_that_every_user_may_use_is_refused_by_name(server: Served, tmp_path: Path, mode: int) -> None:
    own = AUTHORITY.issue().written(tmp_path)
    key = own["tls_key"]
    key.chmod(mode)
    with pytest.raises(ConfigError, match=rf"^tls_key: {key} may be .* \(mode {mode:o}\): run `chmod o= {key}`"):
        async with server(Play(""), **own):
            pass
    key.chmod(0o440)
    async with server(Play(""), **own) as served:
        assert await trusts(served, AUTHORITY)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_client_ca"])
async def test_a_file_that_is_missing_is_named(server: Served, tmp_path: Path, missing: str) -> None:
    given = AUTHORITY.issue().written(tmp_path / "tls") | {missing: tmp_path / "nowhere.pem"}
    with pytest.raises(ConfigError, match=f"{missing}: {re.escape(str(tmp_path))}/nowhere.pem cannot be read: No such"):
        async with server(Play(""), **given):
            pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "a"}, "tls_key is missing, with tls_cert given"),
        ({"tls_key": "a"}, "tls_cert is missing, with tls_key given"),
        ({"tls_client_ca": "a"}, "tls_cert is missing, with tls_client_ca given"),
        ({"tls_tenants": {"a": "b"}}, "tls_client_ca is missing, with tls_tenants given"),
        ({"tls_cert": "a", "tls_key": "b", "plaintext": True}, "plaintext is true, with tls_cert given"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.load(**given)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.invalid:0"])
async def test_without_tls_no_other_machine_is_served_unless_a_proxy_is_said_to_add_it(
    server: Served, listen: str
) -> None:
    with pytest.raises(ConfigError, match=f"listen: {re.escape(listen)} is reached from other machines"):
        async with server(Play(""), listen=listen):
            pass
    certificates.refuse_plaintext(Settings.load(listen=listen, plaintext=True))


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.3.2.1:0", "localhost:0", "[::1]:0"])
def test_loopback_needs_no_tls(listen: str) -> None:
    certificates.refuse_plaintext(Settings.load(listen=listen))


def with_clients(tmp_path: Path, **tenants: str) -> dict[str, Any]:
    (tmp_path / "clients.pem").write_bytes(OTHER.pem)
    table = {name.replace("__", "://"): tenant for name, tenant in tenants.items()}
    own = AUTHORITY.issue().written(tmp_path / "tls")
    return {**own, "tls_client_ca": tmp_path / "clients.pem", "tls_tenants": table}


async def test_a_client_without_a_certificate_of_the_authority_is_not_served(server: Served, tmp_path: Path) -> None:
    async with server(Play(""), **with_clients(tmp_path)) as served:
        assert not await trusts(served, AUTHORITY)
        assert not await trusts(served, AUTHORITY, AUTHORITY.issue())
        assert not await trusts(served, AUTHORITY, OTHER.issue(ends=timedelta(minutes=-1)))
        assert await trusts(served, AUTHORITY, OTHER.issue())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("spiffe__acme", OTHER.issue("x", dns=(), uris=("spiffe://acme",))),
        ("acme", OTHER.issue("x", dns=("acme",))),
        ("acme", OTHER.issue("acme", dns=())),
    ],
    ids=["uri", "dns", "common name"],
)
async def test_a_certificate_names_the_tenant_of_a_call_without_a_key(
    server: Served, tmp_path: Path, name: str, shown: Issued
) -> None:
    async with server(Play(""), **with_clients(tmp_path, **{name: "other"})) as served:
        await served.tenant("other")
        _, key = await served.running.keys.create("other")
        async with connected(served, AUTHORITY, shown) as stub:
            assert await info(stub, None) == await info(stub, key)
            await info(stub, served.running.key)  # a key goes before


UNKNOWN = {
    "not in the table": (OTHER.issue("stranger"), {"acme": "other"}),
    "a common name beside other names": (OTHER.issue("acme", dns=("x",)), {"acme": "other"}),
    "two tenants": (OTHER.issue(dns=("acme", "beta")), {"acme": "other", "beta": "development"}),
    "a tenant that is not there": (OTHER.issue(dns=("acme",)), {"acme": "nobody"}),
}


@pytest.mark.parametrize("case", UNKNOWN)
async def test_a_certificate_that_names_no_tenant_needs_a_key_beside_it(
    server: Served, tmp_path: Path, case: str
) -> None:
    shown, table = UNKNOWN[case]
    async with server(Play(""), **with_clients(tmp_path, **table)) as served:
        await served.tenant("other")
        async with connected(served, AUTHORITY, shown) as stub:
            assert (await refusal(info(stub, None))).reason == "UNAUTHENTICATED"
            await info(stub, served.running.key)


async def test_the_python_client_is_served(server: Served, tmp_path: Path) -> None:
    async with server(Play(""), **AUTHORITY.issue().written(tmp_path / "tls")) as served:

        def quota() -> Any:
            with Client(served.running.address, served.running.key, tls=True, root_certificates=AUTHORITY.pem) as own:
                return own.get_quota()

        assert await asyncio.to_thread(quota)


def test_the_files_are_looked_at_no_more_often_than_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(certificates, "LOOK_SECONDS", 1e9)
    settings = Settings.load(**AUTHORITY.issue().written(tmp_path))
    first = certificates.read_certificate(settings)
    assert first is not None
    shown = certificates.Certificates(settings, first)
    OTHER.issue().written(tmp_path)
    assert shown.renewed() is None
    assert shown.current == first
