"""What was measured, as a table and by the names of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.money.fairness import Fairness
from benchmarks.money.holds import Held
from benchmarks.money.load import Loaded
from benchmarks.money.reconciled import Books
from benchmarks.money.server import Measured
from rlm_server.ledger import usd

SHOWN = 10
"""Of what is wrong."""


@dataclass(slots=True)
class Findings:
    """What was measured, by database."""

    holds: dict[str, Held] = field(default_factory=dict)
    loads: dict[str, Loaded] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    books: dict[str, Books] = field(default_factory=dict)
    fairness: dict[str, Fairness] = field(default_factory=dict)
    guests: dict[str, Measured] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether no money was lost anywhere."""
        return not any(
            books.overspend or books.unresolved or books.difference or books.wrong for books in self.books.values()
        )

    def result(self) -> dict[str, float]:
        """Return the figures."""
        figures: dict[str, float] = {}

        def add(name: str, by_kind: dict[str, float], total: Callable[[list[float]], float]) -> None:
            figures.update({f"{name}_{kind}": round(value, 3) for kind, value in by_kind.items()})
            figures[name] = round(total(list(by_kind.values())), 3)

        add("overspend_nano_usd", {kind: books.overspend for kind, books in self.books.items()}, max)
        add("unresolved_holds", {kind: books.unresolved for kind, books in self.books.items()}, sum)
        add("ledger_minus_provider_bill", {kind: books.difference for kind, books in self.books.items()}, sum)
        add("holds_per_s", {kind: held.per_second for kind, held in self.holds.items()}, min)
        add("broker_overhead_ms_p50", {kind: guest.overhead_ms for kind, guest in self.guests.items()}, max)
        add("batch_1000_x", {kind: guest.batch_ratio for kind, guest in self.guests.items()}, max)
        add("fairness", {kind: fair.ratio for kind, fair in self.fairness.items()}, max)
        return figures

    def table(self) -> str:
        """Return all of it for people."""
        return "\n".join(line for kind in self.books for line in [kind, *map("  {}".format, self._lines(kind)), ""])

    def _lines(self, kind: str) -> Iterator[str]:
        load, books, held = self.loads[kind], self.books[kind], self.holds[kind]
        fair, guest = self.fairness[kind], self.guests[kind]
        seconds = self.load_seconds[kind]
        yield f"{len(load.calls):,} calls in {seconds:.0f} s, up to {load.most_in_flight} in flight; they ended so:"
        yield from (f"  {count:7,} {end}" for end, count in load.counts().most_common())
        yield f"  {load.put_off:7,} times a model was left alone for a while, and the call made again"
        yield f"most that any account was above its limit by: {usd(books.overspend)}; unresolved: {books.unresolved}"
        yield f"{books.certain:,} holds of certain cost, {usd(books.difference)} away from the provider's bill"
        yield f"{books.doubts.total():,} ambiguous holds, posted in full: {usd(books.doubtful)}"
        yield f"  of which the provider billed {usd(books.doubtful_billed)}; by what went wrong:"
        yield from (f"  {count:7,} {fault}" for fault, count in books.doubts.most_common())
        yield f"{len(books.wrong)} things that must not be"
        yield from (f"  {wrong}" for wrong in books.wrong[:SHOWN])
        steps = ", ".join(f"{step} {taken:.1f} ms" for step, taken in held.latencies().items())
        yield f"{held.per_second:,.0f} holds/s; medians with 500 tasks: {steps}"
        yield f"llm_query {guest.guest_ms:.2f} ms, the bare SDK {guest.bare_ms:.2f} ms"
        yield f"a batch of 1,000: {guest.batch_seconds:.2f} s, {guest.batch_ratio:.2f} times what the provider takes"
        yield f"a single call {fair.alone_ms:.0f} ms; with {fair.queued:,} of another tenant {fair.beside_ms:.0f} ms"
