"""The ledger's tables against the provider's bill, request by request."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.money.broker import PRICE
from benchmarks.money.load import AGAIN, Call, Loaded
from benchmarks.money.provider import Bill, digest
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.ledger import Usage


@dataclass(frozen=True, slots=True)
class Posted:
    """A posted hold. `usage` is None where it is ambiguous, and posted as a whole."""

    held: int
    actual: int
    usage: Usage | None


@dataclass(slots=True)
class Books:
    """What comparing found. Money is in nano-US-dollars."""

    overspend: int
    unresolved: int
    difference: int = 0
    """Sum, over all calls whose cost is certain, of how far what was posted is from what was billed."""
    certain: int = 0
    """Posted holds whose cost is certain."""
    doubts: Counter[str] = field(default_factory=Counter)
    """How many ambiguous holds there are, by what went wrong."""
    doubtful: int = 0
    """What the ambiguous holds were posted with, together."""
    doubtful_billed: int = 0
    wrong: list[str] = field(default_factory=list)
    """What must not be."""


async def reconciled(database: Database, load: Loaded) -> Books:
    """Compare what every call cost by the tables with what it cost by the bill."""
    states, posted = await database.read(_holds)
    books = Books(load.most_over, states["pending"] + states["dispatched"])
    bills = dict(load.bills)
    for call in load.calls:
        _compare(call, posted.pop(call.id, []), bills.pop(digest(call.prompt), []), load.ends[call.id], books)
    books.wrong += [f"{call}: a hold of no call" for call in posted]
    books.wrong += [f"{prompt}: a bill of no call" for prompt in bills]
    books.wrong += await database.read(_sums_that_disagree)
    return books


def _compare(call: Call, posted: Sequence[Posted], bills: Sequence[Bill], end: str, books: Books) -> None:
    billed, actual = sum(PRICE.cost(bill.usage) for bill in bills), sum(hold.actual for hold in posted)
    if len(posted) > 1 or len(bills) > 1:
        books.wrong.append(f"{call.id}: {len(posted)} posted holds, {len(bills)} bills")
    if all(hold.usage for hold in posted):
        books.difference += abs(actual - billed)
        books.certain += len(posted)
        if [hold.usage for hold in posted] != [bill.usage for bill in bills]:
            books.wrong.append(f"{call.id}: posted {actual}, billed {billed}, or not for the same tokens")
        return
    fault = bills[0].fault if bills else None
    books.doubts[fault or ("cancelled" if end == "cancelled" else f"nothing billed ({end})")] += 1
    books.doubtful += actual
    books.doubtful_billed += billed
    if actual < billed:
        books.wrong.append(f"{call.id}: ambiguous, and posted {actual} where {billed} was billed")
    books.wrong += [f"{call.id}: ambiguous, and not posted in full" for hold in posted if hold.actual != hold.held]


def _holds(connection: Connection) -> tuple[Counter[str], dict[str, list[Posted]]]:
    states = Counter[str]()
    posted: defaultdict[str, list[Posted]] = defaultdict(list)
    rows = connection.execute(
        "SELECT id, state, nano_usd, actual_nano_usd, input, output, cache_read, cache_write, reasoning FROM hold"
    )
    for id, state, held, actual, *usage in rows:
        states[state] += 1
        if state == "posted":
            counted = None if usage[0] is None else Usage(*usage)
            posted[id.partition(AGAIN)[0]].append(Posted(held, actual, counted))
    return states, posted


def _sums_that_disagree(connection: Connection) -> list[str]:
    """Return the accounts that still promise or hold something, or differ from the sum of what is under them."""
    own = dict(connection.execute("SELECT account, sum(actual_nano_usd) FROM hold GROUP BY account").fetchall())
    rows = connection.execute(
        "SELECT id, parent, posted_nano_usd + overrun_nano_usd, pending_nano_usd + carved_nano_usd FROM account"
    ).fetchall()
    under = Counter[str]()
    for _, parent, spent, _ in rows:
        under[parent] += spent
    return [
        f"{id}: {spent} spent, {own.get(id) or 0} by its holds and {under[id]} below, {kept} held or promised"
        for id, _, spent, kept in rows
        if spent != (own.get(id) or 0) + under[id] or kept
    ]
