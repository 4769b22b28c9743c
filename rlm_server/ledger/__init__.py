"""Money: what may be spent, what is held, what was spent."""

from rlm_server.ledger.accounts import Balance
from rlm_server.ledger.amounts import MAX_BUDGET, NANO, UNITS, Amounts, Limit, usd
from rlm_server.ledger.entries import By, Entry, Query, UsageRow
from rlm_server.ledger.errors import (
    AccountClosed,
    AccountConflict,
    AccountExists,
    AccountInUse,
    AccountUnknown,
    AmountRefused,
    BudgetBusy,
    BudgetError,
    BudgetExceeded,
    CustomerClosed,
    HoldConflict,
    HoldUnknown,
    LedgerError,
    LimitTooLow,
    MoveRefused,
    StaleEpoch,
    TooManyAccounts,
)
from rlm_server.ledger.events import BudgetEvent, Delivery, EventFilter
from rlm_server.ledger.holds import Hold, HoldState, Recovery
from rlm_server.ledger.ledger import Ledger
from rlm_server.ledger.payer import Payer
from rlm_server.ledger.settling import settle
from rlm_server.ledger.statements import Statement, Totals, Window
from rlm_server.ledger.usage import Usage
from rlm_server.ledger.windows import BUDGET_SPANS, ModelLimit, Scope, SoftLimit, Span

__all__ = [
    "BUDGET_SPANS",
    "MAX_BUDGET",
    "NANO",
    "UNITS",
    "AccountClosed",
    "AccountConflict",
    "AccountExists",
    "AccountInUse",
    "AccountUnknown",
    "AmountRefused",
    "Amounts",
    "Balance",
    "BudgetBusy",
    "BudgetError",
    "BudgetEvent",
    "BudgetExceeded",
    "By",
    "CustomerClosed",
    "Delivery",
    "Entry",
    "EventFilter",
    "Hold",
    "HoldConflict",
    "HoldState",
    "HoldUnknown",
    "Ledger",
    "LedgerError",
    "Limit",
    "LimitTooLow",
    "ModelLimit",
    "MoveRefused",
    "Payer",
    "Query",
    "Recovery",
    "Scope",
    "SoftLimit",
    "Span",
    "StaleEpoch",
    "Statement",
    "TooManyAccounts",
    "Totals",
    "Usage",
    "UsageRow",
    "Window",
    "settle",
    "usd",
]
