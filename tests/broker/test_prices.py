"""The pinned prices: exact, complete in what they bound, and silent about no model."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker import generate_prices
from rlm_server.broker.prices import FREE, NoPrice, Price, Prices, Rates, Tier
from rlm_server.ledger import Usage

TABLE = json.loads(generate_prices.TABLE.read_text(encoding="utf-8"))

NAMES = [(provider, name) for provider, rows in TABLE["providers"].items() for row in rows for name in row["names"]]

tokens = st.integers(0, 3_000_000)
rates = st.builds(
    Rates,
    input=st.integers(0, 10**12),
    output=st.integers(0, 10**12),
    cache_read=st.none() | st.integers(0, 10**12),
    cache_write=st.none() | st.integers(0, 10**12),
)


@st.composite
def priced_usages(draw: st.DrawFn) -> tuple[Price, Usage]:
    starts = draw(st.lists(st.integers(0, 2_000_000), max_size=3, unique=True).map(sorted))
    price = Price(draw(rates), tuple(Tier(start, draw(rates)) for start in starts))
    used = draw(tokens)
    read = draw(st.integers(0, used))
    write = draw(st.integers(0, used - read))
    return price, Usage(input=used, output=draw(tokens), cache_read=read, cache_write=write)


def test_the_source_is_not_needed_to_run() -> None:
    program = "import sys, rlm_server.broker.broker; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_table_is_what_the_generator_makes_of_its_source() -> None:
    assert TABLE["source"] == f"genai-prices {genai_prices.__version__}"
    assert generate_prices.text(date.fromisoformat(TABLE["as_of"])) == generate_prices.TABLE.read_text(encoding="utf-8")


def test_every_priced_model_costs_what_the_source_says() -> None:
    usage = Usage(input=300_123, output=2_345, cache_read=1_017)
    source_usage = genai_prices.Usage(input_tokens=300_123, output_tokens=2_345, cache_read_tokens=1_017)
    when = datetime.combine(date.fromisoformat(TABLE["as_of"]), datetime.min.time(), UTC)
    prices = Prices.load()
    assert len(NAMES) > 100
    for provider, name in NAMES:
        said = genai_prices.calc_price(
            source_usage, name, provider_id=provider, genai_request_timestamp=when
        ).total_price
        assert prices.price(provider, name).cost(usage) == -(-said * 10**9 // 1), name


def test_a_call_is_priced_exactly_and_rounded_up_to_a_whole_nano_dollar() -> None:
    price = Price(Rates(input=1, output=999_999, cache_read=0))
    assert price.cost(Usage(input=1)) == 1
    assert price.cost(Usage(input=1_000_000)) == 1
    assert price.cost(Usage(input=1_000_001)) == 2
    assert price.cost(Usage(input=1_000_000, cache_read=1_000_000)) == 0
    assert price.cost(Usage(output=1_000_000)) == 999_999


def test_a_known_model_costs_what_its_list_price_says() -> None:
    price = Prices.load().price("anthropic", "claude-sonnet-4-5")
    assert price.cost(Usage(input=1_000, output=100, cache_read=400, cache_write=200)) == (
        400 * 3_000 + 400 * 300 + 200 * 3_750 + 100 * 15_000
    )
    assert price.cost(Usage(input=200_001, output=1)) == 200_001 * 6_000 + 22_500, "the long-context tier"


@given(priced_usages(), tokens, tokens)
def test_no_call_costs_more_than_its_bound(case: tuple[Price, Usage], more_input: int, more_output: int) -> None:
    price, usage = case
    assert price.cost(usage) <= price.bound(usage.input + more_input, usage.output + more_output)


@given(priced_usages())
def test_rounding_never_favours_the_spender_nor_adds_a_whole_nano_dollar(case: tuple[Price, Usage]) -> None:
    price, usage = case
    used = [price.rates, *(tier.rates for tier in price.tiers if usage.input > tier.above)][-1]
    plain = usage.input - usage.cache_read - usage.cache_write
    exact = Fraction(
        plain * used.input + usage.cache_read * used.read + usage.cache_write * used.write + usage.output * used.output,
        10**6,
    )
    assert exact <= price.cost(usage) < exact + 1


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-sonnet-4-6x"),
        ("anthropic", "Claude-Sonnet-4-6"),
        ("anthropic", "claude-sonnet-4-6-turbo"),
        ("openai", "gpt-4o-realtime-preview"),
        ("openai", "gpt-4o-mini-search-preview"),
        ("openai", "gpt-4o-2099-01-01"),
        ("openai", "claude-sonnet-4-6"),
        ("nobody", "gpt-4o"),
        ("openai", ""),
    ],
)
def test_a_model_that_is_not_in_the_table_has_no_price(provider: str, model: str) -> None:
    with pytest.raises(NoPrice, match="state one"):
        Prices.load().price(provider, model)


def test_a_dated_snapshot_has_the_price_of_its_model() -> None:
    prices = Prices.load()
    for dated, model in [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
    ]:
        assert prices.price("anthropic", dated) == prices.price("anthropic", model)
        assert prices.context_window("anthropic", dated) == 200_000


def test_an_operator_may_state_a_price_and_zero_is_one() -> None:
    dear = Price(Rates(input=10**12, output=10**12))
    prices = Prices.load({("vllm", "qwen"): FREE, ("openai", "gpt-4o"): dear})
    assert prices.price("vllm", "qwen").bound(10**6, 10**6) == 0
    assert prices.price("openai", "gpt-4o") == dear
    assert prices.context_window("vllm", "qwen") is None


def test_the_version_changes_with_any_price_and_with_nothing_else() -> None:
    version = Prices.load().version
    assert Prices.load().version == version
    assert Prices.load({("vllm", "qwen"): FREE}).version != version
    changed = json.loads(json.dumps(TABLE))
    changed["providers"]["openai"][0]["input"] += 1
    assert Prices(changed).version != version
    assert Prices(json.loads(json.dumps(TABLE))).version == version


def test_every_rate_is_a_whole_number_of_nano_dollars() -> None:
    numbers = [value for rows in TABLE["providers"].values() for row in rows for value in row.values()]
    assert not [value for value in numbers if isinstance(value, float | Decimal)]
