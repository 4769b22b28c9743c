"""The command that probes call says what the server says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from tests.certificates import Authority
from tests.servers import Served
from tests.system.stage import Play


async def said(monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[int, str]:
    for name, value in given.items():
        monkeypatch.setenv(f"RLM_{name.upper()}", str(value))
    told = await asyncio.to_thread(CliRunner().invoke, main, ["health"])
    return told.exit_code, told.output.strip()


async def test_health_is_told_and_so_is_that_nobody_answers(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(Play("")) as served:
        address = served.running.address
        assert await said(monkeypatch, listen=address) == (0, "SERVING")
    assert await said(monkeypatch, listen=address) == (1, "the server does not answer: UNAVAILABLE")


async def test_a_server_that_listens_everywhere_is_asked_on_loopback(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(Play("")) as served:
        port = served.running.address.rpartition(":")[2]
        assert await said(monkeypatch, listen=f"0.0.0.0:{port}") == (0, "SERVING")


async def test_a_server_with_a_certificate_is_known_by_it(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Authority().issue(dns=("rlm.example.org",)).written(tmp_path / "tls")
    async with server(Play(""), **own) as served:
        assert await said(monkeypatch, listen=served.running.address, **own) == (0, "SERVING")


async def test_where_clients_need_certificates_health_needs_a_port_of_its_own(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    own = {**authority.issue().written(tmp_path / "tls"), "tls_client_ca": tmp_path / "ca.pem"}
    async with server(Play(""), health_listen="127.0.0.1:0", **own) as served:
        listen = {"listen": served.running.address, **own}
        code, output = await said(monkeypatch, **listen)
        assert (code, "set health_listen" in output) == (1, True)
        assert await said(monkeypatch, health_listen=served.running.health, **listen) == (0, "SERVING")
