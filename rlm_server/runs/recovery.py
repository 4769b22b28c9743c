"""What a former process left unfinished: runs that go on are made ready for that, and all others are ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from rlm_server.clock import now
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import ContextDamaged, Contexts
from rlm_server.ledger import Amounts, Ledger, names
from rlm_server.runs.events import Event, EventOrigin, RunFinished, WrittenEvent, read, written
from rlm_server.runs.journal import Journal, NodeRow, RunRow
from rlm_server.runs.leftovers import children_of, closed
from rlm_server.runs.node import SERVER_STOPPED
from rlm_server.runs.past.entries import Happened
from rlm_server.runs.past.past import RunPast
from rlm_server.runs.past.remains import Remains
from rlm_server.runs.past.run_file import RunFile
from rlm_server.runs.redaction import Redaction
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import Services, kept_outcome
from rlm_server.shares.threads import Purpose
from sandbox.pool.sealing import SnapshotRefused

log = logging.getLogger(__name__)

RUNS_AT_ONCE = 200
"""Runs that are looked up at once."""
EVENTS_AT_ONCE = 500
"""Events that had not been kept, in one transaction."""


class CannotGoOn(Exception):
    """A run that a former process left cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class LeftRun:
    """A run that goes on: what is known of it, and its context, which is held."""

    row: RunRow
    file: RunFile
    past: RunPast
    context: Context | None


async def recover(services: Services, contexts: Contexts, remains: Remains) -> list[LeftRun]:
    """Settle every hold, have each run ready that can go on, and end the others: they get their last event.

    What is left of runs that have succeeded is what `remains` of them.
    """
    journal, ledger = services.journal, services.ledger
    unfinished = await journal.unfinished()
    left = await _left(services, contexts, unfinished)
    recovered = await ledger.recover()
    log.info("recovered holds: %d voided, %d posted in full", recovered.voided, recovered.posted)
    going = {one.row.id for one in left}
    nodes = {node.id for node in unfinished if node.run in going} | children_of(one.past for one in left)
    succeeded = await _succeeded(journal, [run for run in services.files.names() if run not in going])
    stay = {run for _, run in succeeded}
    services.files.keep_only(going | stay)
    for kind in (names.RUN, names.NODE):
        services.pool.keep_only(nodes | stay, kind)
    remains.restore(succeeded)
    # Children first, and from their accounts: a child may have one already and be no node of the run's yet.
    await ledger.close_left(names.NODE, nodes)
    for node in unfinished:
        if node.run in going:
            continue
        spent = await closed(ledger, node.id)
        await journal.move(node.id, RunState.FAILED, reason=SERVER_STOPPED, turns=node.turns)
        if node.parent is None:
            await _finish(journal, node.id, spent, services.redaction)
    for root in await journal.unannounced():
        await _finish(journal, root, (await ledger.balance(root)).posted, services.redaction)
    if left:
        log.info("%d runs go on that a former server left", len(left))
    return left


async def _succeeded(journal: Journal, runs: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for at in range(0, len(runs), RUNS_AT_ONCE):
        found += await journal.succeeded(runs[at : at + RUNS_AT_ONCE])
    return found


async def _left(services: Services, contexts: Contexts, unfinished: Sequence[NodeRow]) -> list[LeftRun]:
    left = []
    for node in unfinished:
        if node.parent is not None:
            continue
        try:
            left.append(await _taken_up(services, contexts, node.id))
        except CannotGoOn as error:
            log.warning("run %s does not go on: %s", node.id, error)
    return left


async def _taken_up(services: Services, contexts: Contexts, run: str) -> LeftRun:
    row = await services.journal.row(run)
    file, past = await settled_past(services, row)
    if past.asked.image not in services.pool.images:
        raise CannotGoOn(f"there is no image {past.asked.image!r} any more")
    context = None
    if row.context is not None:
        context = await contexts.get(row.tenant, row.context)
        if context is None:
            raise CannotGoOn(f"its context {row.context} was deleted")
        try:
            await contexts.pin(context)
        except ContextDamaged as error:
            raise CannotGoOn(str(error)) from error
    return LeftRun(row, file, past, context)


async def settled_past(services: Services, row: RunRow) -> tuple[RunFile, RunPast]:
    """Take up the file of a run for which nobody works, have its calls in the books, and its events in the journal.

    Raises:
        CannotGoOn: there is none, or it cannot be used.
    """
    try:
        redaction = services.redaction.of(row.tenant, row.id)
        file, entries = await services.shares.threads.run(
            Purpose.READING,
            row.tenant,
            lambda _: services.files.take_up(row.id, row.tenant, lambda: redaction.wanted),
        )
    except (SnapshotRefused, OSError) as error:
        raise CannotGoOn(str(error)) from None
    past = RunPast.of(entries)
    if past is None:
        raise CannotGoOn("its file does not say what was asked")
    await _settle(services.ledger, row.id, past)
    await _keep(services.journal, row.id, past.events)
    return file, past


async def _settle(ledger: Ledger, run: str, past: RunPast) -> None:
    """Resolve the holds of a run. A call whose answer is known costs what that says; any other that left, all of it."""
    answered = {f"{reply.call_id}.{reply.attempts}": reply for _, reply in past.replies}
    for hold, dispatched in await ledger.unresolved_of(run):
        reply = answered.get(hold)
        if not dispatched:
            await ledger.void(hold)
        elif reply is None or reply.usage is None:
            await ledger.post_in_full(hold)
        else:
            await ledger.post(hold, reply.spent, reply.usage)


async def _keep(journal: Journal, run: str, events: Sequence[Happened]) -> None:
    """Have those events in the journal that were on their way to it."""
    last = await journal.last_sequence(run)
    missing = [_written(one) for one in events if one.sequence > last]
    for at in range(0, len(missing), EVENTS_AT_ONCE):
        await journal.append(run, missing[at : at + EVENTS_AT_ONCE])


def _written(one: Happened) -> WrittenEvent:
    origin = EventOrigin(one.node, one.parent, one.depth, one.turn)
    return WrittenEvent(read(one.sequence, one.at, origin, one.body, one.cut), one.body, one.cut, one.size)


async def _finish(journal: Journal, run: str, spent: Amounts, redaction: Redaction) -> None:
    outcome, tenant = await kept_outcome(journal, run), await journal.owner(run)
    assert outcome is not None  # noqa: S101
    last = await journal.last_sequence(run)
    body = RunFinished(outcome.state, outcome.reason, spent, outcome.answer)
    event = Event(last + 1, now(), EventOrigin(run, "", 0), body)
    await journal.append(run, [written(event, redaction.of(tenant, run))])
