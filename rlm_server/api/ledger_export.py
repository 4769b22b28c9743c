"""The ledger's entries as a file: CSV or JSON lines, in chunks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from rlm_server.ledger import UNITS, Entry, names
from rlm_server.ledger.usage import COUNTS

MAX_CHUNK = 256 << 10
"""Bytes of one message of an export."""

COLUMNS = (
    "number", "time", "hold_id", "account_id", "run_id", "node_id", "model", "price_version", "ambiguous", *UNITS,
    *(f"held_{unit}" for unit in UNITS), *(f"{name}_tokens" for name in COUNTS),
)  # fmt: skip
"""What a line says of an entry. Usage that no provider reported is empty in CSV and null in JSON."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_Value = str | int | bool | None


def header() -> str:
    """Return the line that names CSV's columns."""
    return _csv(COLUMNS)


def csv_line(entry: Entry) -> str:
    """Return an entry as a line of CSV. No text of it is a formula to a spreadsheet."""
    return _csv([_cell(value) for value in _values(entry)])


def json_line(entry: Entry) -> str:
    """Return an entry as a line with one JSON object."""
    return json.dumps(dict(zip(COLUMNS, _values(entry), strict=True))) + "\n"


def lines(entries: Iterable[Entry], line: Callable[[Entry], str]) -> list[bytes]:
    """Return the lines of some entries in UTF-8."""
    return [line(entry).encode() for entry in entries]


def chunks(lines: Iterable[bytes], most: int = MAX_CHUNK) -> Iterator[bytes]:
    """Join lines to chunks of at most `most` bytes. No line is split, so none may be longer."""
    chunk = bytearray()
    for line in lines:
        if chunk and len(chunk) + len(line) > most:
            yield bytes(chunk)
            chunk.clear()
        chunk += line
    if chunk:
        yield bytes(chunk)


def _values(entry: Entry) -> Iterator[_Value]:
    hold, usage = entry.hold, entry.usage
    time = datetime.fromtimestamp(entry.at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    account = names.last_of(entry.customer, hold.tenant)
    yield from (
        entry.number,
        time,
        hold.id,
        account,
        hold.run,
        hold.node,
        hold.model,
        hold.price_version,
        entry.ambiguous,
    )
    for amounts in (entry.actual, hold.amounts):
        yield from (getattr(amounts, unit) for unit in UNITS)
    yield from asdict(usage).values() if usage else (None,) * len(COUNTS)


def _cell(value: _Value) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() if value.startswith(_FORMULA):
            return f"'{value}"
        case _:
            return str(value)


def _csv(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
