"""`rlm-server prices`, run as an operator would, and the prices that a server then has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from click.testing import CliRunner, Result

from rlm_server.broker.prices import generate as generate_prices
from rlm_server.broker.prices.table import Price, Prices, Rates
from rlm_server.broker.providers.registry import PROVIDERS
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.broker.routes import UnknownModel
from rlm_server.commands.cli import main
from rlm_server.commands.prices import COLUMNS
from rlm_server.config.model_catalog import Models, build_models
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.config.stated_prices import FILE, Key, StatedPrice, StatedPrices
from tests.fake_provider.server import FakeProvider
from tests.servers import Served
from tests.system.books import rows
from tests.system.stage import USD, Play

ROOT = Path(__file__).parents[2]
SOL, HAIKU = "openai/gpt-6-sol", "anthropic/claude-haiku-4-5"
DIGEST = r"[0-9a-f]{16}"


@pytest.fixture(autouse=True)
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the commands of a test find, and put, stated prices: nowhere yet."""
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "data"


def run(*words: str) -> Result:
    result = CliRunner().invoke(main, ["prices", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    result = run(*words)
    assert result.exit_code != 0
    return " ".join(result.output.split())


def shown(*models: str) -> Any:
    return json.loads(done("show", "--json", *models))


def model_shown(name: str) -> Any:
    (one,) = shown(name)["models"]
    return one


def set_price(name: str, paid_input: str = "1", paid_output: str = "2", *more: str) -> str:
    return done("set", name, "--input", paid_input, "--output", paid_output, *more)


def served() -> Models:
    """What a server that starts now offers."""
    return build_models(Settings.load(), SCRIPTS)


def compatible(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Configure a model named "own", with no price unless one is given."""
    own = {"base_url": "http://127.0.0.1:9/v1", "upstream": "org/own-8b", **more}
    monkeypatch.setenv("RLM_MODELS", json.dumps({"own": own}))


# show


def test_show_lists_every_pinned_name_with_its_source_and_version() -> None:
    lines = done("show").splitlines()
    assert re.split(r" {2,}", lines[0]) == list(COLUMNS)
    pinned = {tuple(line.split()[:2]) for line in lines[1:-1] if "simulated" not in line}
    assert pinned == {(one.provider, one.model) for one in Prices.load().listed()}
    source = rf"pinned: genai-prices \S+ of \d{{4}}-\d\d-\d\d, (1 day|\d+ days) old; version of all prices: {DIGEST}"
    assert re.fullmatch(source, lines[-1])


def test_show_has_a_models_tiers_below_it() -> None:
    _, first, tier, _ = done("show", "claude-sonnet-4-5").splitlines()
    assert first.split() == ["anthropic", "claude-sonnet-4-5", "$3.00", "$15.00", "$0.30", "$3.75", "200,000", "pinned"]
    assert tier.split() == ["anthropic", "claude-sonnet-4-5", "200,000", "$6.00", "$22.50", "$0.60", "$7.50"]


def test_show_takes_a_name_with_its_provider_and_a_dated_snapshots() -> None:
    named = shown(SOL, "claude-haiku-4-5-20251001", "claude-haiku-4-5")["models"]
    assert [one["model"] for one in named] == ["gpt-6-sol", "claude-haiku-4-5-20251001", "claude-haiku-4-5"]
    assert {**named[1], "model": ""} == {**named[2], "model": ""}


def test_show_gives_machines_whole_nano_dollars_and_nothing_rounded() -> None:
    everything = json.loads(done("show", "--json"), parse_float=pytest.fail)
    assert set(everything) == {"unit", "source", "as_of", "version", "models"}
    assert everything["unit"] == "nano-USD per 1,000,000 tokens"
    assert everything["source"] == f"genai-prices {genai_prices.__version__}"
    assert model_shown("claude-sonnet-4-5") == {
        "provider": "anthropic",
        "model": "claude-sonnet-4-5",
        "input": 3 * USD,
        "output": 15 * USD,
        "cache_read": 300_000_000,
        "cache_write": 3_750_000_000,
        "tiers": [
            {"above": 200_000, "input": 6 * USD, "output": 22_500_000_000, "cache_read": 600_000_000}
            | {"cache_write": 7_500_000_000}
        ],
        "context_window": 200_000,
        "price": "pinned",
    }


@pytest.mark.parametrize(
    ("name", "near"),
    [("gpt-6-soul", "gpt-6-sol"), ("Claude-Haiku-4-5", "claude-haiku-4-5"), ("openai/gpt-6-so", "openai/gpt-6-sol")],
)
def test_an_unknown_model_is_an_error_that_names_near_names(name: str, near: str) -> None:
    told = refused("show", "gpt-6-sol", name)
    assert f"no price is known for '{name}'; near names: " in told
    assert near in re.split(r"[ ,]+", told)
    assert "$" not in told, "nothing is shown of the others"


def test_a_name_like_no_other_is_an_error_too() -> None:
    assert refused("show", "ζζζζζζζζ") == "Error: no price is known for 'ζζζζζζζζ'"


@pytest.mark.parametrize("words", [["show"], ["set", SOL, "--input", "1", "--output", "2"], ["unset", SOL], ["--help"]])
def test_prices_are_shown_and_stated_without_the_server_or_an_sdk(words: list[str]) -> None:
    set_price(SOL)
    program = (
        "import sys; from rlm_server.commands.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'anthropic', 'openai', 'grpc', 'genai_prices', 'rlm_server.server'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "prices", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


# set and unset


def test_a_stated_price_goes_before_the_pinned_one_until_it_is_taken_back() -> None:
    before = shown()
    told = set_price(SOL, "2.2", "11", "--cache-read", "0.22", "--cache-write", "2.75")
    assert f"{SOL} costs $2.20 input, $11.00 output, $0.22 cache read, $2.75 cache write" in told
    assert "instead of pinned: $2.00 input" in told
    assert "is it the dearest?" in told, "the pinned price has tiers"
    assert "a server that runs keeps its prices until its next start" in told
    now = model_shown(SOL)
    assert (now["input"], now["output"], now["cache_read"]) == (2_200_000_000, 11 * USD, 220_000_000)
    assert (now["cache_write"], now["tiers"], now["price"]) == (2_750_000_000, [], "stated")
    assert shown()["version"] != before["version"]
    assert f"{SOL} costs $2.00 input" in done("unset", SOL)
    assert shown() == before


def test_a_price_may_be_0_and_is_exact_to_a_nano_dollar() -> None:
    set_price("openai/gpt-free", "0", "0.000000001")
    found = model_shown("gpt-free")
    assert [found[rate] for rate in ("input", "output", "cache_read", "cache_write")] == [0, 1, 0, 0]
    set_price("openai/gpt-dear", "999999.999999999", "1000000", "--cache-write", "0.1")
    found = model_shown("gpt-dear")
    assert (found["input"], found["output"]) == (999_999_999_999_999, 1_000_000_000_000_000)
    assert (found["cache_read"], found["cache_write"]) == (999_999_999_999_999, 100_000_000)


@pytest.mark.parametrize(
    ("name", "write"), [(HAIKU, 1_250_000_004), ("openai/gpt-9", 1_250_000_004), ("compatible/own", 1_000_000_003)]
)
def test_a_cache_rate_that_is_not_stated_is_as_dear_as_it_can_be(name: str, write: int) -> None:
    set_price(name, "1.000000003", "5")
    found = model_shown(name)
    assert (found["cache_read"], found["cache_write"]) == (1_000_000_003, write)


@pytest.mark.parametrize(
    ("option", "amount", "why"),
    [
        ("--input", "-1", "greater than or equal to 0"),
        ("--output", "-0.000000001", "greater than or equal to 0"),
        ("--input", "1000000.000000001", "less than or equal to 1000000"),
        ("--cache-read", "1e400", "less than or equal to 1000000"),
        ("--cache-write", "NaN", "finite number"),
        ("--input", "sNaN", "finite number"),
        ("--output", "Infinity", "finite number"),
        ("--input", "0.0000000001", "no more than 9 decimal places"),
        ("--cache-write", "1e-400", "no more than 9 decimal places"),
        ("--output", "$5", "valid decimal"),
        ("--input", "", "valid decimal"),
    ],
)
def test_an_amount_that_is_no_price_is_refused_by_name(data_dir: Path, option: str, amount: str, why: str) -> None:
    amounts = {"--input": "1", "--output": "1", option: amount}
    told = refused("set", SOL, *(word for pair in amounts.items() for word in pair))
    assert re.search(rf"{option}: .*{why}", told)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt-6-sol", "'gpt-6-sol' is not PROVIDER/MODEL"),
        ("openai/", "is not PROVIDER/MODEL"),
        ("openai/a b", "is not PROVIDER/MODEL"),
        ("openai/a\x1b[2J", "is not PROVIDER/MODEL"),
        ("opnai/gpt-6-sol", f"there is no provider 'opnai': they are {', '.join(PROVIDERS)}; is it openai?"),
        ("scripted/scripted", "there is no provider 'scripted'"),
    ],
)
def test_a_name_that_is_none_is_refused(data_dir: Path, name: str, why: str) -> None:
    assert why in refused("set", name, "--input", "1", "--output", "1")
    assert why in refused("unset", name)
    assert not data_dir.exists()


def test_input_and_output_must_both_be_stated(data_dir: Path) -> None:
    assert "--output" in refused("set", SOL, "--input", "1")
    assert "--input" in refused("set", SOL, "--output", "1")
    assert not data_dir.exists()


def test_a_model_the_table_does_not_have_is_told_its_near_names() -> None:
    assert re.search(
        r"not in the pinned table; near names: .*gpt-6-sol.*; check its name", set_price("openai/gpt-6-soul")
    )
    assert "the configuration has no models.own yet" in set_price("compatible/own")


def test_a_stated_price_is_for_all_names_of_its_model_and_two_do_not_contradict() -> None:
    assert "the same goes for its other names: claude-4-5-haiku, claude-4.5-haiku, claude-haiku-4.5" in set_price(HAIKU)
    assert model_shown("claude-haiku-4.5")["price"] == "stated"
    told = refused("set", "anthropic/claude-haiku-4.5", "--input", "1", "--output", "3")
    assert "claude-haiku-4-5 and claude-haiku-4.5 are names of one model" in told
    assert model_shown("claude-haiku-4.5")["output"] == 2 * USD


def test_only_what_is_stated_can_be_taken_back_and_all_of_it_or_nothing() -> None:
    set_price(SOL)
    set_price("openai/gpt-9")
    assert f"no price is stated for openai/gpt-6-soul; near names: {SOL}" in refused("unset", SOL, "openai/gpt-6-soul")
    assert model_shown(SOL)["price"] == "stated"
    assert "openai/gpt-9 has no price now, and is not offered without one" in done("unset", SOL, "openai/gpt-9")
    assert model_shown(SOL)["price"] == "pinned"
    refused("show", "gpt-9")


# the file


def test_the_file_is_the_operators_alone_and_one_line_a_model(data_dir: Path) -> None:
    set_price(SOL, "1.50", "2e1")
    set_price("compatible/org/own", "0", "0", "--cache-read", "0")
    file = data_dir / FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in data_dir.iterdir()] == [FILE]
    assert file.read_text().splitlines()[3:5] == [
        '    "compatible/org/own": {"input": "0.00", "output": "0.00", "cache_read": "0.00"},',
        '    "openai/gpt-6-sol": {"input": "1.50", "output": "20.00"}',
    ]


def test_a_file_edited_by_hand_is_read_exactly(data_dir: Path) -> None:
    set_price(SOL)
    prices = f'{{"{SOL}": {{"input": 0.1, "output": 3}}, "openai/x": {{"input": "0.3", "output": 0.000000001}}}}'
    (data_dir / FILE).write_text(f'{{"unit": "USD per 1,000,000 tokens", "prices": {prices}}}')
    assert model_shown(SOL)["input"] == 100_000_000
    assert model_shown("openai/x")["output"] == 1
    assert StatedPrices(data_dir).read()[Key("openai", "gpt-6-sol")].input == Decimal("0.1")


GOOD = '{"unit": "USD per 1,000,000 tokens", "prices": {"openai/x": %s}}'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (GOOD % '{"input": -1, "output": 2}', "prices.openai/x.input: .*greater than or equal to 0"),
        (GOOD % '{"input": 1, "output": 1e7}', "prices.openai/x.output: .*less than or equal to 1000000"),
        (GOOD % '{"input": NaN, "output": 1}', "prices.openai/x.input: .*finite"),
        (GOOD % '{"input": "1", "output": "0.0000000001"}', "prices.openai/x.output: .*9 decimal places"),
        (GOOD % '{"input": true, "output": "1"}', "prices.openai/x.input: "),
        (GOOD % '{"input": 1}', "prices.openai/x.output: Field required"),
        (GOOD % '{"input": 1, "output": 1, "inptu": 2}', "prices.openai/x.inptu: "),
        (GOOD % '{"input": 1, "output": 1, "input": 2}', "'input' is there twice"),
        (GOOD % "3", "prices.openai/x: "),
        ('{"unit": "USD per 1,000 tokens", "prices": {}}', "unit: "),
        (
            '{"unit": "USD per 1,000,000 tokens", "prices": {"opnai/x": {"input": 1, "output": 1}}}',
            "no provider 'opnai'",
        ),
        ('{"unit": "USD per 1,000,000 tokens"}', "prices: Field required"),
        ("[]", "the file: "),
        ('{"unit": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_field_and_is_left_alone(
    data_dir: Path, content: str | bytes, named: str
) -> None:
    data_dir.mkdir()
    file, written = data_dir / FILE, content if isinstance(content, bytes) else content.encode()
    file.write_bytes(written)
    for words in (["show"], ["check"], ["set", SOL, "--input", "1", "--output", "1"], ["unset", SOL]):
        told = refused(*words)
        assert str(file) in told
        assert re.search(named, told)
    with pytest.raises(ConfigError, match=named) as caught:
        served()
    assert str(file) in str(caught.value)
    assert file.read_bytes() == written


def test_a_price_that_cannot_be_written_leaves_what_was_there(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_price(SOL)
    before = (data_dir / FILE).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left on device" in refused("set", HAIKU, "--input", "1", "--output", "1")
    assert (data_dir / FILE).read_bytes() == before
    assert [path.name for path in data_dir.iterdir()] == [FILE]


def test_prices_stated_at_the_same_time_are_all_kept(data_dir: Path) -> None:
    def state(number: int) -> None:
        with StatedPrices(data_dir).changing() as kept:
            kept[Key("openai", f"gpt-new-{number}")] = StatedPrice(input=Decimal(number), output=Decimal(0))

    threads = [threading.Thread(target=state, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.model: price.input for key, price in StatedPrices(data_dir).read().items()} == {
        f"gpt-new-{number}": number for number in range(30)
    }


def test_another_data_directory_has_other_prices(tmp_path: Path) -> None:
    set_price(SOL, "1", "2", "--data-dir", str(tmp_path / "other"))
    assert model_shown(SOL)["price"] == "pinned"
    told = done("show", SOL, "--data-dir", str(tmp_path / "other"))
    assert told.splitlines()[1].endswith("stated")


# what a server then has


def test_a_server_has_the_prices_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    set_price(SOL, "7", "8")
    set_price("openai/gpt-9", "3", "4")
    models = served()
    assert models.prices.version == shown()["version"]
    assert models.routes.route("gpt-6-sol").price.rates.input == 7 * USD
    assert models.routes.route("gpt-9").price == Price(Rates(3 * USD, 4 * USD, 3 * USD, 3_750_000_000))
    done("unset", "openai/gpt-9")
    with pytest.raises(UnknownModel):
        served().routes.route("gpt-9")


def test_a_default_model_without_a_price_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("RLM_MODEL", "gpt-9")
    with pytest.raises(
        ConfigError, match=r"^model: 'gpt-9' is not offered here; .*rlm-server prices set PROVIDER/MODEL"
    ):
        served()
    assert "NO models: model: 'gpt-9' is not offered here" in refused("check")
    set_price("openai/gpt-9")
    assert served().model == "gpt-9"


def test_a_compatible_model_without_a_price_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    compatible(monkeypatch)
    what = r"no price is stated for models\.own: .*rlm-server prices set compatible/own --input USD --output USD"
    with pytest.raises(ConfigError, match=what):
        served()
    assert re.search(f"NO models: {what}", refused("check"))
    set_price("compatible/own", "0", "0")
    route = served().routes.route("own")
    assert (route.upstream, route.price.bound(10**6, 10**6)) == ("org/own-8b", 0)
    assert "ok models: 2 offered, each with a price" in done("check")


def test_the_configurations_price_goes_before_the_stated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_price("compatible/own", "1", "1")
    prices = {"input_usd_per_million": 0.1, "output_usd_per_million": "5", "cache_read_usd_per_million": 0.01}
    compatible(monkeypatch, **prices)
    price = Price(Rates(100_000_000, 5 * USD, 10_000_000, 100_000_000))
    assert served().routes.route("own").price == price
    assert model_shown("own")["price"] == "stated in the configuration"
    assert "-- stated: compatible/own to no effect, as the configuration's own price goes before it" in done("check")
    told = refused("set", "compatible/own", "--input", "1", "--output", "1")
    assert "the configuration states a price at models.own, which goes before this one: change it there" in told
    done("unset", "compatible/own")
    assert "to no effect" not in done("check")


async def test_calls_are_held_and_paid_at_the_stated_price_from_the_next_start_on(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeProvider(answer="```repl\nFINAL('yes')\n```").serving() as provider:
        compatible(monkeypatch, base_url=f"{provider.url}/v1")
        monkeypatch.setenv("RLM_MODEL", "own")
        set_price("compatible/own", "1", "10")
        versions = []
        for stated, next_stated in (("1", "2"), ("2", "2")):
            async with server(Play("")) as started:
                set_price("compatible/own", next_stated, "10")
                ended = await started.caller.ask()
                (hold,) = rows(started.data_dir, "SELECT * FROM hold WHERE model = 'own' AND run = ?", ended.run.run_id)
                usage = provider.billed[-1].usage
                assert hold["actual_nano_usd"] == usage.input * int(stated) * 1000 + usage.output * 10_000
                assert hold["price_version"] == started.running.models.prices.version
                versions.append(hold["price_version"])
        assert versions[0] != versions[1]


# check


def test_check_finds_all_in_order() -> None:
    set_price(SOL)
    told = done("check", "--strict")
    assert re.search(r"^ok models: 1 offered, each with a price$", told, re.M)
    assert re.search(
        r"^ok table: genai-prices \S+ of [\d-]+, \d+ days? old, as it was made \(SHA-256 \w{64}\)$", told, re.M
    )
    assert re.search(rf"^ok stated: 1 in .*{FILE}$", told, re.M)
    assert re.search(r"^ok source: genai-prices \S+ has the same prices today, for \d+ names$", told, re.M)


def test_check_lists_what_the_source_says_differently_and_fails_only_if_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads(generate_prices.TABLE.read_text(encoding="utf-8"))
    haikus, openai = table["providers"]["anthropic"][7], table["providers"]["openai"]
    assert "claude-haiku-4-5" in haikus["names"]
    haikus["input"] += 1
    openai[:] = [row for row in openai if row["names"] != ["gpt-6-sol"]]
    openai.append(
        {"names": ["gpt-9"], "input": USD, "output": 2 * USD, "tiers": [{"above": 9, "input": 1, "output": 2}]}
    )
    monkeypatch.setattr(generate_prices, "table", lambda today: {**table, "as_of": today.isoformat()})
    names = "claude-4-5-haiku, claude-4.5-haiku, claude-haiku-4-5, claude-haiku-4.5"
    differences = (
        rf"source: anthropic {names}: pinned \$1\.00 input, .*; genai-prices \S+ \$1\.000000001 input, ",
        r"source: openai gpt-6-sol: pinned \$2\.00 input, .*; genai-prices \S+ no price$",
        r"source: openai gpt-9: pinned no price; genai-prices \S+ \$1\.00 input, .*; over 9 of input \$0\.000000001 ",
    )
    for mark, told in (("--", done("check")), ("NO", run("check", "--strict").output)):
        assert len(re.findall(r"source: ", told)) == len(differences)
        for difference in differences:
            assert re.search(f"^{mark} {difference}", told, re.M), told
    assert run("check", "--strict").exit_code == 1


WITHOUT_THE_SOURCE = """
import sys
sys.modules["genai_prices"] = None
from rlm_server.commands.cli import main
for words in (["check"], ["check", "--strict"]):
    try:
        main(["prices", *words])
    except SystemExit as ended:
        print("exit code", ended.code)
"""


def test_check_says_what_it_did_not_compare_without_the_source() -> None:
    command = [sys.executable, "-c", WITHOUT_THE_SOURCE]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    source = r"source: genai-prices is not installed: the prices of \d+ names were not compared with today's"
    assert re.search(f"^-- {source}\nexit code 0\n(.+\n)+NO {source}\nexit code 1$", told, re.M), told


def test_a_table_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    for package in ("rlm_server", "sandbox"):
        shutil.copytree(ROOT / package, tmp_path / package)
    table = tmp_path / "rlm_server" / "broker" / "prices" / "prices.json"

    def ended(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlm_server.commands.cli", "prices", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert json.loads(ended("show", "--json").stdout) == shown()
    table.write_text(table.read_text().replace('"input": 8000000000,', '"input": 7000000000,', 1))
    edited = ended("check")
    assert edited.returncode == 1
    found = r"^NO table: .*, but prices\.json was edited since: its SHA-256 was (\w{64}), and is (\w{64}); "
    ((was, now),) = re.findall(found, edited.stdout, re.M)
    assert was != now
    assert json.loads(ended("show", "--json").stdout)["version"] != shown()["version"]


def test_the_doctor_shows_the_tables_age_and_the_servers_version(data_dir: Path) -> None:
    set_price(SOL)
    told = CliRunner().invoke(main, ["doctor"]).output
    source = r"genai-prices \S+ of \d{4}-\d\d-\d\d, \d+ days? old"
    assert re.search(rf"^ok  prices: version {served().prices.version}; {source}; 1 stated$", told, re.M), told
