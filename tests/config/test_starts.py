"""A server that cannot start says why in one line: which setting, what it may be, and where its value comes from."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.database.engine import DatabaseError, DatabaseOwnedError, DatabaseVersionError
from tests.servers import Served
from tests.system.stage import Play

HUGE = "9" * 30

WRONG = [
    # variable, value, the setting that the message names, and what it says of it
    ("RLM_GRACE_SECONDS", "-1", "grace_seconds", "at least 0 seconds"),
    ("RLM_DRAIN_SECONDS", "-0.5", "drain_seconds", "at least 0 seconds"),
    ("RLM_DRAIN_SECONDS", "soon", "drain_seconds", "at least 0 seconds"),
    ("RLM_RUN_RETENTION_DAYS", "-1", "run_retention_days", "from 0 to 36,500 days"),
    ("RLM_CONTEXT_RETENTION_DAYS", "never", "context_retention_days", "from 0 to 36,500 days"),
    ("RLM_CONTEXT_RETENTION_DAYS", "nan", "context_retention_days", "from 0 to 36,500 days"),
    ("RLM_RUNS", "0", "runs", "1 to 1,024 runs"),
    ("RLM_RUNS", "1025", "runs", "1 to 1,024 runs"),
    ("RLM_RUNS", "1.5", "runs", "1 to 1,024 runs"),
    ("RLM_RUNS", HUGE, "runs", "1 to 1,024 runs"),
    ("RLM_RUNS", "", "runs", "1 to 1,024 runs"),
    ("RLM_DEFAULT_DEPTH", "17", "default_depth", "0 to 16 levels"),
    ("RLM_MAX_CONTEXT_BYTES", "0", "max_context_bytes", "in bytes"),
    ("RLM_CONTEXT_BYTES", "-1", "context_bytes", "in bytes"),
    ("RLM_UPLOAD_BYTES_PER_SECOND", "-1", "upload_bytes_per_second", "in bytes"),
    ("RLM_SESSION_SECONDS", "0", "session_seconds", "above 0 seconds"),
    ("RLM_SESSION_IDLE_SECONDS", "-3", "session_idle_seconds", "above 0 seconds"),
    ("RLM_BUDGET_WAIT_SECONDS", "0", "budget_wait_seconds", "above 0 seconds"),
    ("RLM_RUN_BUDGET_USD", "0", "run_budget_usd", "US dollars"),
    ("RLM_RUN_BUDGET_USD", "1000001", "run_budget_usd", "US dollars"),
    ("RLM_DAY_BUDGET_USD", "much", "day_budget_usd", "US dollars"),
    ("RLM_LOG_JSON", "perhaps", "log_json", "true or false"),
    ("RLM_LOG_CALLS", "2", "log_calls", "true or false"),
    ("RLM_PLAINTEXT", "proxy", "plaintext", "true or false"),
    ("RLM_UNCONFINED", "-", "unconfined", "true or false"),
    ("RLM_LISTEN", "7400", "listen", "host:port"),
    ("RLM_HEALTH_LISTEN", "here", "health_listen", "host:port"),
    ("RLM_METRICS_LISTEN", "99999", "metrics_listen", "host:port"),
    ("RLM_DATABASE_URL", "mysql://secret@host/db", "database_url", "postgresql://"),
    ("RLM_TENANTS__ACME__WEIGHT", "1000", "tenants.acme.weight", "0.01 to 100 shares"),
    ("RLM_SANDBOX__TURN_SECONDS", "-1", "sandbox.turn_seconds", "seconds"),
    ("RLM_TLS_TENANTS", "acme", "tls_tenants", "JSON"),
]


@pytest.mark.parametrize(("variable", "value", "named", "must_be"), WRONG)
def test_a_wrong_setting_says_what_it_may_be_and_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str, must_be: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    said = str(caught.value)
    assert said.startswith(f"the configuration is wrong: {named}: "), said
    assert must_be in said
    assert variable in said, "where it comes from"
    assert "secret" not in said
    assert len(said) < 400


@pytest.mark.parametrize(("variable", "value", "named", "must_be"), WRONG[:-1])
def test_the_same_in_the_file_says_the_same_and_names_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, named: str, must_be: str
) -> None:
    *tables, name = variable.removeprefix("RLM_").lower().split("__")
    file = tmp_path / "server.toml"
    file.write_text(f"[{'.'.join(tables)}]\n" * bool(tables) + f'{name} = "{value}"\n')
    monkeypatch.setenv("RLM_CONFIG", str(file))
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    said = str(caught.value)
    assert said.startswith(f"the configuration is wrong: {named}: "), said
    assert must_be in said
    assert f"(from {file})" in said, "where it comes from"
    assert "secret" not in said


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("runs = [1]", "runs: must be from 1 to 1,024 runs, not [1]"),
        ("runs = 1.5", "runs: must be from 1 to 1,024 runs, not 1.5"),
        ("listen = 7400", "listen: must be text"),
        ("images = ['core']", "images: "),
        ("[images.mine]\nimport = ['json']", "images.mine.import: there is no such setting; is it imports?"),
        ("[images.mine]\nimports = ['a b']", "images.mine.imports.0: "),
        ("[images.mine]\nwheels = ['networkx']", "images.mine.wheels: 'networkx' must be the path of a .whl"),
        ("[images.mine]\nwheels = ['a.whl#sha256=12']", "images.mine.wheels: 'a.whl#sha256=12' must be the path"),
        ("[tls_tenants]\na = 1", "tls_tenants.a: "),
        ("[tenants.acme]\nweights = 1", "tenants.acme.weights: there is no such setting; is it weight?"),
    ],
)
def test_a_wrong_kind_in_the_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, told: str
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(content)
    monkeypatch.setenv("RLM_CONFIG", str(file))
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"the configuration is wrong: {told}")
    assert f"(from {file})" in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("no-such-host.invalid:0", "the host no-such-host.invalid is not known"),
        ("192.0.2.1:0", "it is no address of this machine"),
    ],
)
@pytest.mark.parametrize("setting", ["listen", "health_listen"])
async def test_an_address_that_cannot_be_listened_on_says_why(
    server: Served, setting: str, listen: str, why: str
) -> None:
    with pytest.raises(OSError, match=f"^{setting}: {listen} cannot be listened on: {why}"):
        async with server(Play(""), plaintext=True, **{setting: listen}):
            pass


async def test_a_port_that_is_taken_says_so(server: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"^listen: {address} cannot be listened on: something else listens there"):
            async with server(Play(""), listen=address):
                pass


async def test_a_data_directory_that_cannot_be_written_to_is_named(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(ConfigError, match=f"^data_dir: {folder} cannot be written to: {why}"):
            async with server(Play(""), data_dir=folder):
                pass


async def test_a_data_directory_has_one_server(server: Served) -> None:
    async with server(Play("")) as served:
        with pytest.raises(DatabaseOwnedError, match=r"rlm.sqlite is already open for writing, by process \d+"):
            async with server(Play(""), data_dir=served.data_dir):
                pass


async def test_a_database_whose_host_is_not_known_stops_the_start_and_is_named(server: Served) -> None:
    url = "postgresql://rlm:secret@no-such-host.invalid/rlm"
    with pytest.raises(DatabaseError, match=r"no-such-host\.invalid") as caught:
        async with server(Play(""), database_url=url):
            pass
    assert "secret" not in str(caught.value)


async def test_a_database_that_a_newer_version_used_is_refused(server: Served, tmp_path: Path) -> None:
    async with server(Play("")):
        pass
    with sqlite3.connect(tmp_path / "data" / "rlm.sqlite") as found:
        found.execute("PRAGMA user_version = 9999")
    with pytest.raises(DatabaseVersionError, match="schema version 9999, this software knows up to"):
        async with server(Play("")):
            pass


def test_an_image_with_a_wheel_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "networkx-3.5-py3-none-any.whl"
    monkeypatch.setenv("RLM_IMAGES", json.dumps({"mine": {"wheels": [str(wheel)]}}))
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path / "data"))
    for command in (["serve", "--listen", "127.0.0.1:0"], ["image", "build"], ["image", "list"]):
        told: Any = CliRunner().invoke(main, command)
        assert told.exit_code == 1
        assert f"the wheel {wheel} cannot be read: No such file or directory" in told.output


def test_an_image_with_a_module_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLM_IMAGES", '{"mine": {"imports": ["no_such_module"]}}')
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path / "data"))
    told: Any = CliRunner().invoke(main, ["serve", "--listen", "127.0.0.1:0"])
    assert told.exit_code == 1
    assert "the image 'mine' does not start" in told.output
    assert "No module named 'no_such_module'" in told.output
