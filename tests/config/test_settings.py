"""A setting that is wrong names itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from rlm_server.config.settings import ConfigError, Settings
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
        ("RLM_IMAGES", '{"core": ["json"]}', "images"),
        ("RLM_IMAGES", '{"My Image": ["json"]}', "images"),
        ("RLM_IMAGES", '{"mine": ["os; print()"]}', "images.mine"),
        ("RLM_WORKER_BYTES", "1", "worker_bytes"),
        ("RLM_RUN_CALLS", "0", "run_calls"),
        ("RLM_TENANT_CALLS", "0", "tenant_calls"),
        ("RLM_TENANTS__ACME__WEIGHT", "0", "tenants.acme.weight"),
        ("RLM_TENANTS__ACME__WEIGHT", "inf", "tenants.acme.weight"),
        ("RLM_TENANTS__ACME__FALLBACKS", "perhaps", "tenants.acme.fallbacks"),
        ("RLM_FALLBACKS", '{"a": "b"}', "fallbacks.a"),
        ("RLM_RUN_BUDGET_USD", "-1", "run_budget_usd"),
        ("RLM_MODELS", '{"m": {"base_url": "http://localhost", "output_usd_per_million": 1}}', "input_usd_per_million"),
        ("RLM_MODELS", '{"m": {"input_usd_per_million": 0.1234567891}}', "models.m.input_usd_per_million"),
        ("RLM_MODELS", "no json", "models"),
        ("RLM_CONFIG", "/nowhere/rlm.toml", "/nowhere/rlm.toml"),
    ],
)
def test_a_wrong_variable_names_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=named):
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
    ],
)
def test_a_wrong_line_of_the_file_names_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, named: str
) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text(content)
    monkeypatch.setenv("RLM_CONFIG", str(file))
    with pytest.raises(ConfigError, match=named):
        Settings.load()


def test_arguments_go_before_variables_and_variables_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rlm.toml"
    file.write_text("max_turns = 1\nruns = 2\nsessions = 3\n")
    monkeypatch.setenv("RLM_CONFIG", str(file))
    monkeypatch.setenv("RLM_RUNS", "20")
    monkeypatch.setenv("RLM_SESSIONS", "30")
    settings = Settings.load(sessions=300)
    assert (settings.max_turns, settings.runs, settings.sessions) == (1, 20, 300)


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
        assert (await served.caller.upload("still there")).characters == 11


async def test_a_tenant_budget_below_what_is_spent_is_refused_at_start(server: Served) -> None:
    async with server(Play(code("FINAL('yes')"))) as served:
        spent = (await served.caller.ask()).run.spent.nano_usd
        assert spent > 1
    with pytest.raises(ConfigError, match="tenant_budget_usd"):
        async with server(Play(""), tenant_budget_usd="0.000000001"):
            pass
    async with server(Play(code("FINAL('again')")), tenant_budget_usd="50") as served:
        assert (await served.caller.ask()).run.answer == "again"
