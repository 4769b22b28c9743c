"""A provider is a class and one entry in the registry: its key, prices, models and all that is said of it follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.providers.registry import PROVIDERS, with_keys
from rlm_server.config.settings import Settings
from tests.config.programs import result_of
from tests.fake_provider.server import FakeProvider


def with_toys(code: str, data_dir: Path, **environment: str) -> Any:
    """What a program says where the toys are providers too."""
    head = "import json\nfrom tests.config.toy_providers import TOY, RESOLD\n"
    return result_of(head + code, {"RLM_DATA_DIR": str(data_dir), **environment})


KEYS = """
import os
from rlm_server.config.settings import Settings
def key(**environment):
    os.environ.update(environment)
    try:
        return Settings.load().api_key(TOY)
    finally:
        for name in environment:
            del os.environ[name]
print(json.dumps([
    key(),
    key(TOY_KEY="a"),
    key(RLM_TOY_API_KEY="b", TOY_KEY="a"),
    key(RLM_TOY_API_KEY="", TOY_KEY="a"),
    key(RLM_CONFIG="FILE"),
    key(RLM_CONFIG="FILE", TOY_KEY="a"),
]))
"""

SHOWN = """
from click.testing import CliRunner
from rlm_server.commands.cli import main
print(json.dumps([CliRunner().invoke(main, words).output for words in %s]))
"""


def test_a_providers_key_is_a_setting_and_has_its_usual_variable(tmp_path: Path) -> None:
    (tmp_path / "rlm.toml").write_text("toy_api_key = 'from the file'\n")
    keys = with_toys(KEYS.replace("FILE", str(tmp_path / "rlm.toml")), tmp_path)
    assert keys == ["", "a", "b", "", "from the file", "a"]


def test_a_providers_models_are_priced_by_its_family_and_by_what_is_stated(tmp_path: Path) -> None:
    words = [
        ["prices", "set", "toy/toy-small", "--input", "1", "--output", "2"],
        ["prices", "set", "toi/x", "--input", "1", "--output", "2"],
        ["prices", "show", "--json", "toy/toy-small", "resold/claude-haiku-5-5", "resold/claude-haiku-4-5-20251001"],
        ["prices", "set", "--help"],
    ]
    stated, unknown, shown, told = with_toys(SHOWN % words, tmp_path)
    assert "toy/toy-small costs $1.00 input, $2.00 output, $1.00 cache read, $1.50 cache write" in stated
    assert f"they are {', '.join(PROVIDERS)}, toy, resold; is it toy?" in unknown
    toy, *resold = json.loads(shown)["models"]
    assert (toy["provider"], toy["price"], toy["cache_write"]) == ("toy", "stated", 1_500_000_000)
    pinned = Prices.load().price("anthropic", "claude-haiku-5-5").rates
    assert (resold[0]["input"], resold[0]["output"], resold[0]["price"]) == (pinned.input, pinned.output, "pinned")
    assert [one["provider"] for one in resold] == ["resold", "resold"]
    assert "toy, resold, or compatible" in " ".join(told.split())
    assert "150 % of it at toy" in " ".join(told.split())


CATALOG = """
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.config.model_catalog import build_models
from rlm_server.config.settings import Settings
models = build_models(Settings.load(), SCRIPTS)
providers = {name: models.routes.route(name).provider_name for name in models.routes.models}
print(json.dumps([models.model, models.sub_model, providers]))
"""


def test_a_providers_models_are_offered_where_there_is_its_key(tmp_path: Path) -> None:
    with_toys(
        SHOWN % [["prices", "set", f"toy/toy-{n}", "--input", "1", "--output", "2"] for n in ("large", "small")],
        tmp_path,
    )
    assert with_toys(CATALOG, tmp_path) == ["scripted", "scripted", {"scripted": "scripted"}]
    everything = {"TOY_KEY": "a", "RESOLD_KEY": "b", "OPENAI_API_KEY": "c"}
    model, sub_model, providers = with_toys(CATALOG, tmp_path, **{**everything, "OPENAI_API_KEY": ""})
    assert (model, sub_model) == ("toy-large", "toy-small"), "of the first in the table that has a key"
    assert {providers["toy-large"], providers["toy-small"]} == {"toy"}
    assert providers["claude-haiku-5-5"] == "resold"
    model, _, providers = with_toys(CATALOG, tmp_path, **everything, ANTHROPIC_API_KEY="d")
    assert (model, providers["claude-haiku-5-5"]) == ("claude-sonnet-5-5", "anthropic"), "which is the first to have it"


def test_the_doctor_and_the_page_show_a_provider(tmp_path: Path) -> None:
    (told,) = with_toys(SHOWN % [["doctor"]], tmp_path, RESOLD_KEY="b")
    without = "; ".join(f"{spec.name}: no {spec.key_variable}" for spec in with_keys())
    assert f"providers: {without}; toy: no TOY_KEY; resold: " in told
    rows = with_toys(
        "from rlm_server.config import page\n"
        "print(json.dumps([line for line in page.text().splitlines() if 'toy_api_key' in line]))",
        tmp_path,
    )
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| `toy_api_key`", "`RLM_TOY_API_KEY`, else `TOY_KEY`", "secret text"]
    ]


RUN = """
import asyncio
from rlm_server.config.settings import Settings
from rlm_server.ledger import Query
from rlm_server.server import serving
from tests.system.stage import Caller

async def main():
    async with serving(Settings.load(listen="127.0.0.1:0")) as running:
        caller = Caller(running.address, running.key)
        run = (await caller.ask()).run
        entries = await running.ledger.entries(Query("development", run=run.run_id))
        await caller.channel.close(None)
    calls = [(entry.hold.model, entry.actual.nano_usd) for entry in entries if entry.hold.model]
    print(json.dumps([run.model, run.sub_model, run.answer, calls]))

asyncio.run(main())
"""


def test_a_run_is_answered_by_a_provider_and_pays_its_price(tmp_path: Path) -> None:
    for name, usd in (("large", "2"), ("small", "1")):
        with_toys(SHOWN % [["prices", "set", f"toy/toy-{name}", "--input", usd, "--output", usd]], tmp_path)
    model, sub_model, answer, calls = with_toys(RUN, tmp_path, TOY_KEY="the-key")
    assert (model, sub_model, answer) == ("toy-large", "toy-small", "hello from the-key")
    assert calls == [["toy-large", 1_100 * 2_000], ["toy-small", 1_100 * 1_000]]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_every_provider_is_called_with_its_key_at_the_address_that_is_given(name: str) -> None:
    async with FakeProvider().serving() as fake:
        module, _, _ = PROVIDERS[name].implementation.partition(":")
        provider = PROVIDERS[name].provider("the-key", fake.base_url(module.rpartition(".")[2]))
        reply = await provider.complete(ModelRequest("any", (Message("user", "a prompt"),)))
        assert (reply.text, fake.received.get_nowait().key) == (fake.answer, "the-key")
        await provider.close()


def test_the_registry_names_what_there_is() -> None:
    prices, settings = Prices.load(), Settings.load()
    assert {"anthropic", "openai"} <= {spec.name for spec in with_keys()}
    for name, spec in PROVIDERS.items():
        assert spec.name == name
        assert bool(prices.models(name)) is bool(spec.prices.name)
        if spec.key_variable:
            assert settings.api_key(spec) == ""
            assert prices.price(name, spec.root_model)
            assert prices.price(name, spec.sub_model)
