"""The pinned prices: exact, complete in what they bound, and silent about no model."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker.attempt import MAX_TOKENS
from rlm_server.broker.prices import generate as generate_prices
from rlm_server.broker.prices.table import (
    FREE,
    MAX_RATE,
    NoPrice,
    Price,
    Prices,
    PricesConflict,
    Rates,
    Tier,
    table_hashes,
)
from rlm_server.ledger import Usage

TABLE = json.loads(generate_prices.TABLE.read_text(encoding="utf-8"))

NAMES = [(provider, name) for provider, rows in TABLE["providers"].items() for row in rows for name in row["names"]]

tokens = st.integers(0, 3_000_000)
amounts = st.integers(0, MAX_RATE)
rates = st.builds(Rates, input=amounts, output=amounts, cache_read=st.none() | amounts, cache_write=st.none() | amounts)
FIELDS = ("input", "output", "cache_read", "cache_write")


@st.composite
def priced(draw: st.DrawFn) -> Price:
    starts = draw(st.lists(st.integers(0, 2_000_000), max_size=3, unique=True).map(sorted))
    return Price(draw(rates), tuple(Tier(start, draw(rates)) for start in starts))


@st.composite
def usages(draw: st.DrawFn, input_tokens: int = 3_000_000, max_tokens: int = 3_000_000) -> Usage:
    """Whatever a call may use within its bounds."""
    used = draw(st.integers(0, input_tokens))
    read = draw(st.integers(0, used))
    write = draw(st.integers(0, used - read))
    return Usage(input=used, output=draw(st.integers(0, max_tokens)), cache_read=read, cache_write=write)


@st.composite
def dearer(draw: st.DrawFn, price: Price) -> Price:
    """The same price with one of its rates raised."""
    field = draw(st.sampled_from(FIELDS))
    at = draw(st.integers(0, len(price.tiers)))

    def raised(old: Rates) -> Rates:
        now = dict(zip(FIELDS, old.numbers(), strict=True))
        return replace(Rates(**now), **{field: draw(st.integers(now[field], MAX_RATE))})

    if at == 0:
        return replace(price, rates=raised(price.rates))
    tiers = list(price.tiers)
    tiers[at - 1] = replace(tiers[at - 1], rates=raised(tiers[at - 1].rates))
    return replace(price, tiers=tuple(tiers))


def priced_numbers(table: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every number of the table that is part of a price, as (where it is, its name)."""
    for rows in table["providers"].values():
        for row in rows:
            for part in (row, *row.get("tiers", ())):
                yield from ((part, name) for name in (*FIELDS, "above") if name in part)


PLACES = len(list(priced_numbers(TABLE)))


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
        assert prices.price(provider, name).cost(usage) == math.ceil(said * 10**9), name


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


@given(st.data(), priced(), tokens, tokens)
def test_no_call_costs_more_than_its_bound(
    data: st.DataObject, price: Price, most_input: int, most_output: int
) -> None:
    usage = data.draw(usages(most_input, most_output))
    assert price.cost(usage) <= price.bound(most_input, most_output)


@given(priced(), usages())
def test_rounding_never_favours_the_spender_nor_adds_a_whole_nano_dollar(price: Price, usage: Usage) -> None:
    used = [price.rates, *(tier.rates for tier in price.tiers if usage.input > tier.above)][-1]
    plain = usage.input - usage.cache_read - usage.cache_write
    exact = Fraction(
        plain * used.input + usage.cache_read * used.read + usage.cache_write * used.write + usage.output * used.output,
        10**6,
    )
    assert exact <= price.cost(usage) < exact + 1


@given(priced(), tokens, tokens, tokens, tokens)
def test_a_larger_call_has_no_smaller_bound(price: Price, most: int, output: int, more: int, more_output: int) -> None:
    assert price.bound(most, output) <= price.bound(most + more, output + more_output)


@given(priced(), usages(), tokens)
def test_more_output_costs_no_less(price: Price, usage: Usage, more: int) -> None:
    assert price.cost(usage) <= price.cost(replace(usage, output=usage.output + more))


@given(st.data(), priced(), usages())
def test_a_dearer_rate_lowers_neither_a_cost_nor_a_bound(data: st.DataObject, price: Price, usage: Usage) -> None:
    more = data.draw(dearer(price))
    assert price.cost(usage) <= more.cost(usage)
    assert price.bound(usage.input, usage.output) <= more.bound(usage.input, usage.output)


def test_the_dearest_call_that_is_believed_fits_the_ledger() -> None:
    dearest = Price(Rates(MAX_RATE, MAX_RATE, MAX_RATE, MAX_RATE))
    assert 0 < dearest.bound(MAX_TOKENS, MAX_TOKENS) < 2**63


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("rate", [0.5, 1.0, Decimal(1), True, "1"])
def test_a_rate_that_is_no_integer_is_refused(field: str, rate: Any) -> None:
    with pytest.raises(TypeError, match="a whole number of nano-dollars"):
        Rates(**{"input": 1, "output": 1, field: rate})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("rate", [-1, MAX_RATE + 1])
def test_a_rate_that_is_negative_or_absurd_is_refused(field: str, rate: int) -> None:
    with pytest.raises(ValueError, match="a rate cannot be"):
        Rates(**{"input": 1, "output": 1, field: rate})


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


def test_a_stated_price_is_for_every_name_of_its_model() -> None:
    dear = Price(Rates(input=10**12, output=10**12))
    prices = Prices.load({("anthropic", "claude-haiku-4-5"): dear})
    for name in ("claude-haiku-4-5", "claude-4-5-haiku", "claude-haiku-4.5", "claude-4-5-haiku-20251001"):
        found = prices.listing("anthropic", name)
        assert (found.price, found.stated, found.context_window) == (dear, True, 200_000), name
    assert prices.names("anthropic", "claude-4.5-haiku") == prices.names("anthropic", "claude-haiku-4-5")
    assert not prices.listing("anthropic", "claude-sonnet-4-5").stated
    assert {one.model for one in prices.listed() if one.stated} == set(prices.names("anthropic", "claude-haiku-4-5"))


def test_a_price_stated_for_a_snapshot_is_for_it_alone() -> None:
    dear = Price(Rates(input=10**12, output=10**12))
    prices = Prices.load({("anthropic", "claude-haiku-4-5-20251001"): dear})
    assert prices.price("anthropic", "claude-haiku-4-5-20251001") == dear
    assert prices.price("anthropic", "claude-haiku-4-5") == Prices.load().price("anthropic", "claude-haiku-4-5")
    assert "claude-haiku-4-5-20251001" in prices.models("anthropic")


def test_different_prices_for_names_of_one_model_are_refused() -> None:
    one, other = ("anthropic", "claude-haiku-4-5"), ("anthropic", "claude-haiku-4.5")
    assert Prices.load({one: Price(Rates(5, 6)), other: Price(Rates(5, 6, 5, 5))}).price(*one).rates.input == 5
    with pytest.raises(PricesConflict, match=r"claude-haiku-4-5 and claude-haiku-4\.5 are names of one model"):
        Prices.load({one: FREE, other: Price(Rates(1, 0))})


def test_the_version_changes_with_any_stated_price_and_with_nothing_else() -> None:
    version = Prices.load().version
    assert Prices.load().version == version
    assert Prices.load({("vllm", "qwen"): FREE}).version != version
    assert Prices.load({("vllm", "qwen"): FREE}).version != Prices.load({("vllm", "gemma"): FREE}).version
    assert Prices({**TABLE, "source": "another", "as_of": "2000-01-01"}).version == version
    same = Prices.load().price("openai", "gpt-6-sol")
    assert Prices.load({("openai", "gpt-6-sol"): same}).version == version, "nothing costs anything else"


@given(st.integers(0, PLACES - 1), st.integers(-(10**6), 10**6).filter(bool))
def test_the_version_changes_with_every_number_of_a_price(place: int, change: int) -> None:
    table = copy.deepcopy(TABLE)
    part, name = list(priced_numbers(table))[place]
    part[name] = max(0, part[name] + change)
    unchanged = list(priced_numbers(TABLE))[place][0][name] == part[name]
    assert (Prices(table).version == Prices(TABLE).version) == unchanged


@given(priced(), priced())
def test_the_version_tells_stated_prices_apart(one: Price, other: Price) -> None:
    same = one.numbers() == other.numbers()
    key = ("compatible", "own")
    assert (Prices.load({key: one}).version == Prices.load({key: other}).version) == same


@given(st.integers(0, 2**32), priced(), priced())
def test_the_version_does_not_change_with_order(seed: int, one: Price, other: Price) -> None:
    shuffle = random.Random(seed)

    def shuffled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: shuffled(node[key]) for key in shuffle.sample(list(node), len(node))}
        return [shuffled(item) for item in shuffle.sample(node, len(node))] if isinstance(node, list) else node

    stated = {("compatible", "one"): one, ("compatible", "other"): other}
    prices, again = Prices(TABLE, stated), Prices(shuffled(TABLE), dict(reversed(stated.items())))
    assert again.version == prices.version
    assert again.listed() == prices.listed()


def test_the_hash_beside_the_table_is_the_tables() -> None:
    found, generated = table_hashes()
    assert found == generated
    written = generate_prices.TABLE.read_text(encoding="utf-8")
    assert generate_prices.TABLE_HASH.read_text(encoding="ascii") == generate_prices.hash_line(written)
    subprocess.run(
        ["sha256sum", "--check", "--quiet", "prices.json.sha256"], cwd=generate_prices.TABLE.parent, check=True
    )


def test_every_rate_is_a_whole_number_of_nano_dollars() -> None:
    numbers = [value for rows in TABLE["providers"].values() for row in rows for value in row.values()]
    assert not [value for value in numbers if isinstance(value, float | Decimal)]
