"""Write `prices.json`, and its hash, from `genai-prices`. A development tool:
`python -m rlm_server.broker.prices.generate`.

Rerun it after upgrading `genai-prices`, read the difference, and commit it: prices change by review, never by
themselves. Models that are not reached by a plain chat call, or whose calls cost more than their tokens (audio, images,
searches), are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ClauseOr,
    ClauseStartsWith,
    ModelInfo,
    ModelPrice,
    Provider,
    TieredPrices,
)

from rlm_server.broker.prices.table import TABLE_FILE, TABLE_HASH_FILE
from rlm_server.broker.providers.registry import PROVIDERS

TABLE = Path(__file__).with_name(TABLE_FILE)
TABLE_HASH = Path(__file__).with_name(TABLE_HASH_FILE)

_RATES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}
_FAMILIES = {spec.prices.name: spec.prices for spec in PROVIDERS.values() if spec.prices.name}
_NOT_CHAT = (
    *("audio", "codex", "image", "instruct", "live", "oss", "realtime"),
    *("research", "search", "transcribe", "tts", "vision"),
)
_NANO_PER_USD = 1_000_000_000


def table(as_of: date) -> dict[str, Any]:
    """The whole table, with the prices that hold on a day."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for provider in providers:
        if provider.id in _FAMILIES:
            converted = (_row(provider, model, as_of) for model in provider.models)
            rows[provider.id] = sorted(
                (row for row in converted if row is not None), key=lambda row: str(row["names"][0])
            )
    return {
        "unit": "nano-USD per 1,000,000 tokens",
        "source": f"genai-prices {genai_prices.__version__}",
        "as_of": as_of.isoformat(),
        "providers": rows,
    }


def text(as_of: date) -> str:
    """The table as it is written: one model to a line, so that a change of price reads as one line."""
    content = table(as_of)
    rows = content.pop("providers")
    head = json.dumps(content, indent=2)[:-2]
    parts = []
    for provider, models in rows.items():
        lines = ",\n".join(f"      {json.dumps(model)}" for model in models)
        parts.append(f'    "{provider}": [\n{lines}\n    ]')
    return f'{head},\n  "providers": {{\n' + ",\n".join(parts) + "\n  }\n}\n"


def _row(provider: Provider, model: ModelInfo, as_of: date) -> dict[str, Any] | None:
    names = sorted(name for name in _names(model) if _is_chat(provider, name) and provider.find_model(name) is model)
    prices = model.get_prices(datetime.combine(as_of, time(), UTC))
    priced = {key for key, value in vars(prices).items() if value is not None}
    if not names or not {"input_mtok", "output_mtok"} <= priced:
        return None
    # Any other unit priced by the token would be a part of a call that this table cannot count.
    if any(key.endswith("_mtok") for key in priced - {*_RATES.values(), "cache_write_1h_mtok"}):
        return None
    row: dict[str, Any] = {"names": names}
    if dated := [name for name in names if _has_dated_names(model, name, names)]:
        row["dated_names"] = dated
    if model.context_window:
        row["context_window"] = model.context_window
    row |= _rates(prices, None)
    if tiers := [{"above": start, **_rates(prices, start)} for start in _tier_starts(prices)]:
        row["tiers"] = tiers
    return row


def _names(model: ModelInfo) -> set[str]:
    """The names that mean this model. A prefix is a name of its own; whatever follows it, other than a date, is not."""

    def from_clause(clause: object) -> Iterator[str]:
        match clause:
            case ClauseOr():
                for part in clause.or_:
                    yield from from_clause(part)
            case ClauseEquals():
                yield clause.equals
            case ClauseStartsWith() if clause.starts_with[-1].isalnum() and not clause.starts_with.endswith("-2025"):
                yield clause.starts_with

    return {model.id, *from_clause(model.match)}


def _is_chat(provider: Provider, name: str) -> bool:
    return (
        name.startswith(_FAMILIES[provider.id].chat_models)
        and name[-1].isalnum()
        and not any(word in name for word in (*_NOT_CHAT, ":"))
    )


def _has_dated_names(model: ModelInfo, name: str, names: list[str]) -> bool:
    """Whether every dated snapshot of a name is this model, rather than just the snapshots listed."""
    probes = {f"{name}-20250514", f"{name}-2025-05-14"}
    return not name.endswith("-latest") and not probes & set(names) and any(map(model.is_match, probes))


def _tier_starts(prices: ModelPrice) -> list[int]:
    values = [getattr(prices, key, None) for key in _RATES.values()]
    return sorted({tier.start for value in values if isinstance(value, TieredPrices) for tier in value.tiers})


def _rates(prices: ModelPrice, start: int | None) -> dict[str, int]:
    """The rates of one tier, or the first ones where `start` is None."""
    rates = {}
    for name, key in _RATES.items():
        value = getattr(prices, key, None)
        if isinstance(value, TieredPrices):
            reached = [tier.price for tier in value.tiers if start is not None and tier.start <= start]
            value = reached[-1] if reached else value.base
        if value is not None:
            rates[name] = _exact(value)
    return rates


def _exact(usd_per_million: Decimal) -> int:
    nano = usd_per_million * _NANO_PER_USD
    if nano != int(nano):
        raise ValueError(f"{usd_per_million} USD is no whole number of nano-USD")
    return int(nano)


def hash_line(written: str) -> str:
    """What `sha256sum` says of a table as it is written."""
    return f"{hashlib.sha256(written.encode()).hexdigest()}  {TABLE.name}\n"


if __name__ == "__main__":
    written = text(datetime.now(UTC).date())
    TABLE.write_text(written, encoding="utf-8")
    TABLE_HASH.write_text(hash_line(written), encoding="ascii")
