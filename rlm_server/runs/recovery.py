"""What a former process left unfinished, ended at the start: its holds are settled, its runs say what happened."""

from __future__ import annotations

import logging

from rlm_server.clock import now
from rlm_server.ledger import AccountUnknown, Amounts, Ledger, LedgerError, names
from rlm_server.runs.events import Event, EventOrigin, RunFinished, written
from rlm_server.runs.journal import Journal
from rlm_server.runs.redaction import Redaction
from rlm_server.runs.state import RunState
from rlm_server.runs.tree import kept_outcome

log = logging.getLogger(__name__)

REASON = "the server stopped during the run"


async def recover(journal: Journal, ledger: Ledger, redaction: Redaction) -> None:
    """Settle every hold, close every account of a run or a child, and give every run its last event."""
    recovered = await ledger.recover()
    log.info("recovered holds: %d voided, %d posted in full", recovered.voided, recovered.posted)
    # Children first, and from their accounts: a child may have one already and be no node of the run's yet.
    await ledger.close_left(names.NODE)
    for node in await journal.unfinished():
        spent = await _closed(ledger, node.id)
        await journal.move(node.id, RunState.FAILED, reason=REASON, turns=node.turns)
        if node.parent is None:
            await _finish(journal, node.id, spent, redaction)
    for root in await journal.unannounced():
        await _finish(journal, root, (await ledger.balance(root)).posted, redaction)


async def _closed(ledger: Ledger, account: str) -> Amounts:
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


async def _finish(journal: Journal, run: str, spent: Amounts, redaction: Redaction) -> None:
    outcome, tenant = await kept_outcome(journal, run), await journal.owner(run)
    assert outcome is not None  # noqa: S101
    last = await journal.last_sequence(run)
    body = RunFinished(outcome.state, outcome.reason, spent, outcome.answer)
    event = Event(last + 1, now(), EventOrigin(run, "", 0), body)
    await journal.append(run, [written(event, redaction.of(tenant, run))])
