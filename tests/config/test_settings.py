"""A setting that is wrong names itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.config.sources import OTHER_VARIABLES
from rlm_server.database.engine import DatabaseOwnedError
from tests.servers import Served
from tests.system.stage import Play, code, eventually


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("RLM_LISTEN", "foo", "listen"),
        ("RLM_LISTEN", "127.0.0.1:99999", "listen"),
        ("RLM_SANDBOX__TURN_SECONDS", "abc", "sandbox.turn_seconds"),
        ("RLM_SANDBOX__TURN_SECONDS", "0", "sandbox.turn_seconds"),
        ("RLM_TENANTS__ACME__FILES", "0", "tenants.acme.files"),
        ("RLM_TENANTS__ACME__CONTEXT_BYTES", "-1", "tenants.acme.context_bytes"),
        ("RLM_CONTEXT_BYTES", "-1", "context_bytes"),
        ("RLM_CONTEXT_RETENTION_DAYS", "-1", "context_retention_days"),
        ("RLM_IMAGES", '{"core": {"imports": ["json"]}}', "images"),
        ("RLM_IMAGES", '{"My Image": {"imports": ["json"]}}', "images"),
        ("RLM_IMAGES", '{"mine": {"imports": ["os; print()"]}}', "images.mine.imports"),
        ("RLM_WORKER_BYTES", "1", "worker_bytes"),
        ("RLM_RUN_CALLS", "0", "run_calls"),
        ("RLM_TENANT_CALLS", "0", "tenant_calls"),
        ("RLM_TENANTS__ACME__WEIGHT", "0", "tenants.acme.weight"),
        ("RLM_TENANTS__ACME__WEIGHT", "inf", "tenants.acme.weight"),
        ("RLM_TENANTS__ACME__FALLBACKS", "perhaps", "tenants.acme.fallbacks"),
        ("RLM_REDACT_CONTENTS", "perhaps", "redact_contents"),
        ("RLM_TENANTS__ACME__REDACT_CONTENTS", "perhaps", "tenants.acme.redact_contents"),
        ("RLM_FALLBACKS", '{"a": "b"}', "fallbacks.a"),
        ("RLM_RUN_BUDGET_USD", "-1", "run_budget_usd"),
        ("RLM_MODELS", '{"m": {"base_url": "http://localhost", "output_usd_per_million": 1}}', "input_usd_per_million"),
        ("RLM_MODELS", '{"m": {"input_usd_per_million": 0.1234567891}}', "models.m.input_usd_per_million"),
        ("RLM_MODELS", "no json", "models"),
        ("RLM_CONFIG", "/nowhere/rlm.toml", "/nowhere/rlm.toml"),
        ("RLM_MAX_TURN", "5", "RLM_MAX_TURN: there is no such setting; is it RLM_MAX_TURNS?"),
        ("RLM_SANDBOX__TURN_SECOND", "5", "sandbox.turn_second: there is no such setting; is it turn_seconds?"),
    ],
)
def test_a_wrong_variable_names_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=re.escape(named)):
        Settings.load()
    told = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path / "data")])
    assert told.exit_code == 1
    assert named in told.output
    assert "Traceback" not in told.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("session_second = 5", "session_second"),
        ("[sandbox]\nturn_second = 5", "sandbox.turn_second"),
        ("[sandbox]\nturn_seconds = 'soon'", "sandbox.turn_seconds"),
        ("[sandbox]\nturn_seconds = ", "rlm.toml is not TOML"),
        ("# caf\xe9", "rlm.toml is not TOML"),
    ],
)
def test_a_wrong_line_of_the_file_names_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, named: str
) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text(content, encoding="latin-1")
    monkeypatch.setenv("RLM_CONFIG", str(file))
    with pytest.raises(ConfigError, match=named):
        Settings.load()


def wrong(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **given: Any) -> str:
    """What is said of a configuration that is wrong."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load(**given)
    return str(caught.value).removeprefix("the configuration is wrong: ")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RLM_RUNS": "0"}, "runs: must be from 1 to 1,024 runs, not '0' (from RLM_RUNS)"),
        ({"RLM_RUNS": ""}, "runs: must be from 1 to 1,024 runs, not '' (from RLM_RUNS)"),
        (
            {"RLM_TENANTS__ACME__MEMORY_BYTES": "5"},
            "tenants.acme.memory_bytes: must be from 64 MiB to 4 GiB, in bytes, not '5' "
            "(from RLM_TENANTS__ACME__MEMORY_BYTES)",
        ),
        (
            {"RLM_SANDBOX": '{"turn_seconds": 0}'},
            "sandbox.turn_seconds: must be from 0.001 to 3,600 seconds, not 0 (from RLM_SANDBOX)",
        ),
        (
            {"RLM_DAY_BUDGET_USD": "0"},
            "day_budget_usd: must be above 0, up to 1,000,000 US dollars, not '0' (from RLM_DAY_BUDGET_USD)",
        ),
        ({"RLM_REST_SECONDS": "0"}, "rest_seconds: must be at least 0.001 seconds, not '0' (from RLM_REST_SECONDS)"),
        ({"RLM_SESSION_SECONDS": "x"}, "session_seconds: must be above 0 seconds, not 'x' (from RLM_SESSION_SECONDS)"),
        (
            {"RLM_RUN_BUDGET_USD": "0.1234567891"},
            "run_budget_usd: Decimal input should have no more than 9 decimal places (from RLM_RUN_BUDGET_USD)",
        ),
        ({"RLM_UNCONFINED": "perhaps"}, "unconfined: must be true or false (from RLM_UNCONFINED)"),
        (
            {"RLM_TENANTS__ACME__FALLBACKS": "perhaps"},
            "tenants.acme.fallbacks: must be true or false or list of texts (from RLM_TENANTS__ACME__FALLBACKS)",
        ),
        ({"RLM_MODELS": '{"m": {}}'}, "models.m.base_url: must be given (from RLM_MODELS)"),
        ({"RLM_MODELS": "{"}, "models: RLM_MODELS is not JSON: "),
        ({"rlm_runs": "0"}, "runs: must be from 1 to 1,024 runs, not '0' (from rlm_runs)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_says_what_it_may_be_and_where_it_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    assert wrong(monkeypatch, variables).startswith(told)


def test_where_a_value_came_from_is_the_source_that_it_was_taken_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text("runs = 0\nsessions = 0\nlisten = 'foo'\n[sandbox]\nfiles = 0\n[tenants.acme]\nfiles = 0\n")
    variables = {"RLM_CONFIG": str(file), "RLM_SESSIONS": "-1", "RLM_SANDBOX__FILES": "-1"}
    said = wrong(monkeypatch, variables, listen="bar").split("; ")
    origins = {one.partition(":")[0]: one[one.rindex("(") :] for one in said}
    assert origins == {
        "listen": "(given as an argument)",
        "sessions": "(from RLM_SESSIONS)",
        "sandbox.files": "(from RLM_SANDBOX__FILES)",
        "runs": f"(from {file})",
        "tenants.acme.files": f"(from {file})",
    }


def test_a_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text("openai_api_key = ['secret']\n[models.m]\nbase_url = 'http://x'\napi_key = 77123977\n")
    variables = {"RLM_CONFIG": str(file), "RLM_DATABASE_URL": "mysql://secret", "RLM_ANTHROPIC_KEY": "secret"}
    told = wrong(monkeypatch, variables)
    assert {"openai_api_key", "models.m.api_key", "database_url", "RLM_ANTHROPIC_KEY"} <= set(re.split("[:;] ", told))
    assert "secret'" not in told
    assert "mysql" not in told
    assert "77123977" not in told


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("RLM_MAX_TURN", "; is it RLM_MAX_TURNS?"),
        ("RLM_MAX_TURNS__X", "; is it RLM_MAX_TURNS?"),
        ("RLM_ANTHROPIC_APIKEY", "; is it RLM_ANTHROPIC_API_KEY?"),
        ("RLM_API_KEYS", "; is it RLM_API_KEY?"),
        ("RLM_PORT", ""),
        ("RLM_METRICS_PORT", "; is it RLM_METRICS_LISTEN?"),
        ("RLM_WHATEVER", ""),
        ("rlm_max_turn", "; is it RLM_MAX_TURNS?"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, near: str) -> None:
    assert wrong(monkeypatch, {name: "9464"}) == f"{name}: there is no such setting{near}"


def test_variables_of_others_that_begin_alike_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    of_kubernetes = {
        "RLM_SERVER_SERVICE_HOST": "10.0.0.1",
        "RLM_SERVER_SERVICE_PORT": "7400",
        "RLM_SERVER_SERVICE_PORT_GRPC": "7400",
        "RLM_SERVER_PORT": "tcp://10.0.0.1:7400",
        "RLM_SERVER_PORT_7400_TCP": "tcp://10.0.0.1:7400",
        "RLM_SERVER_PORT_7400_TCP_ADDR": "10.0.0.1",
        "RLM_PORT": "tcp://10.0.0.1:7400",
    }
    for name, value in {**of_kubernetes, **dict.fromkeys(OTHER_VARIABLES.keys() - {"RLM_CONFIG"}, "x")}.items():
        monkeypatch.setenv(name, value)
    Settings.load()


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = wrong(monkeypatch, {"RLM_MAX_TURN": "5", "RLM_RUNS": "0", "RLM_LISTEN": "foo", "RLM_SANDBOX__FILE": "1"})
    names = {one.partition(":")[0] for one in told.split("; ") if ":" in one}
    assert names == {"RLM_MAX_TURN", "runs", "sandbox.file", "listen"}


def test_arguments_go_before_variables_and_variables_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text("max_turns = 1\nruns = 2\nsessions = 3\n")
    monkeypatch.setenv("RLM_CONFIG", str(file))
    monkeypatch.setenv("RLM_RUNS", "20")
    monkeypatch.setenv("RLM_SESSIONS", "30")
    settings = Settings.load(sessions=300)
    assert (settings.run_limits().max_turns, settings.runs, settings.pool_limits.sessions) == (1, 20, 300)


def test_a_providers_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("RLM_LISTEN", "foo")
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert "sk-secret" not in str(caught.value)
    monkeypatch.delenv("RLM_LISTEN")
    assert "sk-secret" not in repr(Settings.load())


@pytest.mark.parametrize("field", ["model", "sub_model"])
async def test_a_default_model_that_is_not_offered_is_refused_at_start(server: Served, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: 'nobody' is not offered here; the models are: play"):
        async with server(Play(""), **{field: "nobody"}):
            pass


@pytest.mark.parametrize(
    ("fallbacks", "tenants", "named"),
    [
        ({"play": ["nobody"]}, {}, "fallbacks.play: 'nobody' is not offered here; the models are: play"),
        ({"nobody": ["play"]}, {}, "fallbacks.nobody: 'nobody' is not offered here"),
        ({"play": ["play"]}, {}, "fallbacks.play: a model cannot answer in its own place"),
        ({}, {"acme": {"fallbacks": ["nobody"]}}, "tenants.acme.fallbacks: 'nobody' is not offered here"),
    ],
)
async def test_a_fallback_that_there_is_no_route_and_no_price_for_is_refused_at_start(
    server: Served, fallbacks: dict[str, list[str]], tenants: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(named)}"):
        async with server(Play(""), fallbacks=fallbacks, tenants=tenants):
            pass


@pytest.mark.parametrize("url", ["nowhere", "ftp://bucket", "file:///not/there"])
async def test_an_object_store_that_is_none_is_refused_at_start(server: Served, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^context_store: "):
        async with server(Play(""), context_store=url):
            pass


async def test_contexts_may_be_kept_in_an_object_store(server: Served, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    url = (tmp_path / "bucket").as_uri()
    async with server(Play(code("FINAL(context)")), context_store=url, context_cache_bytes=0) as served:
        context = await served.caller.upload("kept elsewhere")
        await eventually(lambda: not list((served.data_dir / "contexts").iterdir()))
        assert (await served.caller.ask(context_id=context.context_id)).run.answer == "kept elsewhere"


async def test_an_address_that_is_taken_is_refused_at_start(server: Served, tmp_path: Path) -> None:
    async with server(Play("")) as served:
        with pytest.raises(OSError, match=f"listen: {served.running.address}"):
            async with server(Play(""), listen=served.running.address, data_dir=tmp_path / "other"):
                pass


async def test_a_second_server_on_the_same_data_is_refused(server: Served, tmp_path: Path) -> None:
    async with server(Play("")) as served:
        with pytest.raises(DatabaseOwnedError, match="already open for writing, by process"):
            async with server(Play("")):
                pass
        assert (await served.caller.upload("still there")).character_count == 11


async def test_a_tenant_budget_below_what_is_spent_is_refused_at_start(server: Served) -> None:
    async with server(Play(code("FINAL('yes')"))) as served:
        spent = (await served.caller.ask()).run.spent.nano_usd
        assert spent > 1
    with pytest.raises(ConfigError, match="tenant_budget_usd"):
        async with server(Play(""), tenant_budget_usd="0.000000001"):
            pass
    async with server(Play(code("FINAL('again')")), tenant_budget_usd="50") as served:
        assert (await served.caller.ask()).run.answer == "again"
