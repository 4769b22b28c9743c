"""Which server, which key, and who may see it."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from rlm_client import Client, InvalidArgument, NoKey, PlaintextRefused, Unavailable
from rlm_client.connection import is_local

from tests.client.conftest import AT_ONCE
from tests.client.fake_contexts import refusal
from tests.client.fake_server import KEY, FakeServer, serving

TLS = Path(__file__).parent / "tls"


def test_every_call_carries_the_key(client: Client, fake: FakeServer) -> None:
    client.upload("text", request_id="mine")
    client.get_context("context-1")
    list(client.list_contexts())
    list(client.list_documents("context-1"))
    client.read_context("context-1")
    client.search_context("context-1", "text")
    client.delete_context("context-1")
    client.create_run("?", "context-1")
    client.get_run("run-1")
    list(client.watch_run("run-1"))
    client.cancel_run("run-1")
    client.delete_run("run-1")
    client.create_session()
    list(client.execute("session-1", "1"))
    client.get_session("session-1")
    client.delete_session("session-1")
    assert [seen["authorization"] for seen in fake.metadata] == [f"Bearer {KEY}"] * 17


def test_over_tls_every_call_carries_the_key() -> None:
    certificate = (TLS / "certificate.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([((TLS / "key.pem").read_bytes(), certificate)])
    with serving(credentials) as fake, Client(fake.target, KEY, tls=True, root_certificates=certificate) as client:
        assert client.get_run("run-1").answer == "42"
        assert fake.metadata[0]["authorization"] == f"Bearer {KEY}"


def test_address_and_key_come_from_the_environment(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_SERVER", fake.target)
    monkeypatch.setenv("RLM_API_KEY", "rlm_from-the-environment")
    with Client() as client:
        client.get_run("run-1")
    assert fake.metadata[0]["authorization"] == "Bearer rlm_from-the-environment"


@pytest.mark.parametrize(
    ("variable", "below"), [("RLM_DATA_DIR", ""), ("XDG_DATA_HOME", "rlm-server"), ("HOME", ".local/share/rlm-server")]
)
def test_the_key_of_a_development_server_on_this_machine_is_found(
    variable: str, below: str, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    (tmp_path / below / "development-key").write_text("rlm_dev\n")
    with Client(fake.target) as client:
        client.get_run("run-1")
    assert fake.metadata[0]["authorization"] == "Bearer rlm_dev"


def test_an_empty_key_or_address_is_not_taken_for_none(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLM_SERVER", fake.target)
    monkeypatch.setenv("RLM_API_KEY", "rlm_from-the-environment")
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path))
    (tmp_path / "development-key").write_text("rlm_dev")
    for key in ("", " "):
        with pytest.raises(NoKey, match="no key"):
            Client(key=key)
    with pytest.raises(ValueError, match="address is empty"):
        Client("")
    monkeypatch.setenv("RLM_API_KEY", "")  # an empty variable is one that is not set
    with Client() as client:
        client.get_run("run-1")
    assert fake.metadata[0]["authorization"] == "Bearer rlm_dev"


def test_an_empty_request_id_is_refused_as_a_repeated_call_would_be_another(client: Client, fake: FakeServer) -> None:
    for call in (
        lambda: client.upload("text", request_id=""),
        lambda: client.create_run("?", request_id=""),
        lambda: client.create_session(request_id=""),
        lambda: list(client.execute("session-1", "1", request_id="")),
    ):
        with pytest.raises(ValueError, match="request_id is empty"):
            call()
    assert fake.requests == []


def test_a_development_key_is_for_this_machine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path))
    (tmp_path / "development-key").write_text("rlm_dev")
    with pytest.raises(NoKey, match=r"no key for rlm\.example:443"):
        Client("rlm.example:443", tls=True)


def test_without_a_key_the_error_says_where_one_comes_from() -> None:
    with pytest.raises(NoKey, match="set RLM_API_KEY"):
        Client()


def test_a_damaged_key_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="copy it again") as caught:
        Client(key="rlm_half and-half")
    assert "half" not in str(caught.value)


def test_the_key_shows_in_no_representation(client: Client) -> None:
    assert KEY not in repr(client) + repr(client._connection)


@pytest.mark.parametrize("target", ["rlm.example:7400", "10.0.0.1:7400", "0.0.0.0:7400", "dns:///rlm.example"])
def test_a_key_is_not_sent_unencrypted_to_another_machine(target: str) -> None:
    with pytest.raises(PlaintextRefused, match="not encrypted"):
        Client(target, KEY)


def test_unencrypted_keys_can_be_allowed() -> None:
    Client("rlm.example:7400", KEY, allow_plaintext=True).close()


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:7400",
        "localhost:7400",
        "localhost",
        "[::1]:7400",
        "::1",
        "unix:/run/rlm",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
    ],
)
def test_loopback_addresses_and_sockets_are_local(target: str) -> None:
    assert is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1.example:7400",
        "localhost.example",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns://10.0.0.1/localhost:1",
        "xds:localhost",
        "passthrough:localhost",
        "",
        "example:127.0.0.1",
    ],
)
def test_what_only_looks_local_is_not(target: str) -> None:
    assert not is_local(target)


def test_a_proxy_of_the_environment_never_sees_a_plaintext_key(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Client(fake.target, KEY) as client:
        assert client.get_run("run-1").run_id == "run-1"


def test_a_call_is_repeated_with_the_same_request_id_while_the_server_is_unavailable(
    client: Client, fake: FakeServer
) -> None:
    fake.refusals["CreateRun"].extend([refusal(grpc.StatusCode.UNAVAILABLE, "busy")] * 3)
    assert client.create_run("?").run_id == "run-1"
    ids = [request.request_id for request in fake.requests]
    assert len(ids) == 4
    assert len(set(ids)) == 1
    assert ids[0]


def test_two_calls_have_different_request_ids(client: Client, fake: FakeServer) -> None:
    client.create_run("?")
    client.create_run("?")
    assert fake.requests[0].request_id != fake.requests[1].request_id


def test_repeating_ends(client: Client, fake: FakeServer) -> None:
    fake.refusals["GetRun"].extend([refusal(grpc.StatusCode.UNAVAILABLE, "busy")] * AT_ONCE.attempts)
    with pytest.raises(Unavailable, match="busy"):
        client.get_run("run-1")
    assert len(fake.requests) == AT_ONCE.attempts


def test_what_the_server_refuses_is_not_repeated(client: Client, fake: FakeServer) -> None:
    fake.refusals["GetRun"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "no"))
    with pytest.raises(InvalidArgument):
        client.get_run("run-1")
    assert len(fake.requests) == 1
