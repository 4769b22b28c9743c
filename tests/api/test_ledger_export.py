"""The ledger as a file: whole, of one moment, in chunks, and no formula to a spreadsheet."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import pytest
from rlm.v1 import budget_pb2

from rlm_server.api import ledger_export
from rlm_server.ledger import Amounts, Entry, Hold, Ledger, Usage
from tests.servers import Served
from tests.system.accountant import CHUNK, TALK, Accountant, entry_filter, spend, units
from tests.system.books import UNITS


def as_told(entry: budget_pb2.Entry) -> dict[str, object]:
    """An entry of the list as a line of the file has it."""
    used = entry.usage if entry.HasField("usage") else None
    return {
        "number": entry.number,
        "time": entry.time.ToDatetime().isoformat(timespec="milliseconds") + "Z",
        "hold_id": entry.hold_id,
        "account_id": entry.account_id,
        "run_id": entry.run_id,
        "node_id": entry.node_id,
        "model": entry.model,
        "price_version": entry.price_version,
        "ambiguous": entry.ambiguous,
        **dict(zip(UNITS, units(entry.amounts), strict=True)),
        **{f"held_{unit}": amount for unit, amount in zip(UNITS, units(entry.held), strict=True)},
        **{
            f"{name}_tokens": getattr(used, f"{name}_count") if used else None
            for name in ("input", "output", "cache_read", "cache_write", "reasoning")
        },
    }


def as_cells(told: dict[str, object]) -> dict[str, str]:
    words = {None: "", True: "true", False: "false"}
    return {
        name: words[value] if value is None or isinstance(value, bool) else str(value) for name, value in told.items()
    }


async def test_a_file_holds_what_the_list_holds(server: Served) -> None:
    async with server(TALK) as served:
        await served.caller.ask()
        await spend(served, "development", 2, doubtful=True)
        accountant = Accountant(served.caller)
        told = [as_told(entry) for entry in await accountant.everything()]
        lines = (await accountant.export(format=budget_pb2.EXPORT_FORMAT_JSONL)).splitlines()
        assert [json.loads(line) for line in lines] == told
        table = await accountant.export(format=budget_pb2.EXPORT_FORMAT_CSV)
        assert list(csv.DictReader(io.StringIO(table))) == [as_cells(one) for one in told]
        assert await accountant.export() == table
        doubtful = await accountant.export(filter=entry_filter(ambiguous_only=True))
        assert len(doubtful.splitlines()) == 1 + 2


async def test_a_file_ends_with_what_had_been_posted_when_it_began(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Ledger.last_entry
    async with server(TALK) as served:

        async def began(ledger: Ledger, tenant: str) -> int:
            last = await begin(ledger, tenant)
            await spend(served, "development", 20, model="later")
            return last

        await spend(served, "development", 20)
        accountant, lines = Accountant(served.caller), budget_pb2.EXPORT_FORMAT_JSONL
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "last_entry", began)
            chunks = [chunk async for chunk in accountant.chunks(format=lines)]
        (last,) = {chunk.last_number for chunk in chunks}
        told = [json.loads(line) for line in b"".join(chunk.data for chunk in chunks).splitlines()]
        assert [one["model"] for one in told] == ["play"] * 20
        assert told[-1]["number"] == last
        after = await accountant.export(format=lines, filter=entry_filter(after_number=last))
        assert [json.loads(line)["model"] for line in after.splitlines()] == ["later"] * 20


async def test_a_large_file_comes_in_chunks_of_whole_lines(server: Served) -> None:
    count = 5_000
    async with server(TALK) as served:
        model = "m" * 600
        await asyncio.gather(*[_one(served, number, model) for number in range(count)])
        chunks = [chunk.data async for chunk in Accountant(served.caller).chunks()]
        assert len(chunks) > 4
        assert all(0 < len(chunk) <= CHUNK and chunk.endswith(b"\r\n") for chunk in chunks)
        numbers = [int(line["number"]) for line in csv.DictReader(io.StringIO(b"".join(chunks).decode()))]
        assert len(numbers) == count
        assert numbers == sorted(set(numbers))


async def _one(served: Any, number: int, model: str) -> None:
    ledger, name = served.running.ledger, f"call_{number}.1"
    await ledger.reserve(
        Hold(name, "development", Amounts(1, 1, 1), model, "p", "development", "development", "development"),
        deadline=float("inf"),
    )
    await ledger.dispatch(name)
    await ledger.post(name, Amounts(1, 1, 1), Usage(1))


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_text_of_a_file_is_a_formula(begins: str) -> None:
    text = f'{begins}HYPERLINK("x","y")'
    hold = Hold(text, text, Amounts(), text, text, "tenant", text, text)
    entry = Entry(hold, Amounts(), None, 0, 1)
    (row,) = csv.DictReader(io.StringIO(ledger_export.header() + ledger_export.csv_line(entry), newline=""))
    for name in ("hold_id", "run_id", "node_id", "model", "price_version"):
        assert row[name] == f"'{text}"
    assert json.loads(ledger_export.json_line(entry))["model"] == text
    assert len(ledger_export.json_line(entry).splitlines()) == 1
