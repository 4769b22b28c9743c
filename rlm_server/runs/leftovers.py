"""What was begun below a node of a run, by a former process or before the run was left, and was not taken up again."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from rlm_server.ledger import AccountUnknown, Amounts, Ledger, LedgerError
from rlm_server.runs.event_log import EventLog
from rlm_server.runs.events import ChildFinished, EventOrigin
from rlm_server.runs.journal import MOST_NODES, Journal, NodeRow, RunRow
from rlm_server.runs.past.past import RunPast
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import Services

log = logging.getLogger(__name__)

CANCELLED = "cancelled"


def children_of(pasts: Iterable[RunPast]) -> set[str]:
    """Return the children that unfinished turns had begun: one may have an account and be no node yet."""
    return {
        made.child
        for past in pasts
        for node in past.nodes.values()
        for line in node.children.values()
        for made in line
    }  # fmt: skip


async def closed(ledger: Ledger, account: str) -> Amounts:
    """Close an account and return what had been spent from it; nothing where there is none."""
    spent = Amounts()
    try:
        spent = (await ledger.balance(account)).posted
        await ledger.close_account(account)
    except AccountUnknown:
        return Amounts()
    except LedgerError as error:
        log.warning("the account of %s could not be closed: %s", account, error)
    return spent


async def end_below(services: Services, event_log: EventLog, run: RunRow, top: str, past: RunPast) -> None:
    """End all that was begun below a node and for which nobody works, the deepest first, and tell that."""
    nodes = await _nodes(services.journal, run.id)
    for node in sorted(nodes.values(), key=lambda one: -one.depth):
        if node.parent is None or node.state.ended or not _is_below(nodes, node, top):
            continue
        spent = await _closed(services, run.tenant, node.id)
        await services.journal.move(node.id, RunState.CANCELLED, reason=CANCELLED, turns=node.turns)
        parent = nodes[node.parent]
        origin = EventOrigin(parent.id, parent.parent or "", parent.depth, parent.turns)
        event_log.emit(origin, ChildFinished(node.id, RunState.CANCELLED, CANCELLED, spent))
    if top == run.id:
        for child in children_of([past]) - nodes.keys():
            await _closed(services, run.tenant, child)


async def _closed(services: Services, tenant: str, node: str) -> Amounts:
    """Close what a node has, its account and its session if it was put away; return what it had spent."""
    services.pool.forget(tenant, node)
    return await closed(services.ledger, node)


async def _nodes(journal: Journal, run: str) -> dict[str, NodeRow]:
    found: dict[str, NodeRow] = {}
    while some := await journal.nodes(run, len(found), MOST_NODES, 0):
        found |= {node.id: node for node in some}
    return found


def _is_below(nodes: dict[str, NodeRow], node: NodeRow, top: str) -> bool:
    above = node.parent
    while above is not None and above != top:
        above = nodes[above].parent
    return above is not None
