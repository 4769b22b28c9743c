"""Money: what may be spent, what is held, what was spent."""

from rlm_server.ledger.accounts import Balance
from rlm_server.ledger.amounts import NANO, UNITS, Amounts, Limit, usd
from rlm_server.ledger.errors import (
    AccountClosed,
    AccountConflict,
    AccountInUse,
    AccountUnknown,
    AmountRefused,
    BudgetBusy,
    BudgetError,
    BudgetExceeded,
    HoldConflict,
    HoldUnknown,
    LedgerError,
    LimitTooLow,
    MoveRefused,
)
from rlm_server.ledger.holds import Entry, Hold, HoldState, Recovery
from rlm_server.ledger.ledger import Ledger
from rlm_server.ledger.schema import MIGRATIONS
from rlm_server.ledger.usage import Usage

__all__ = [
    "MIGRATIONS",
    "NANO",
    "UNITS",
    "AccountClosed",
    "AccountConflict",
    "AccountInUse",
    "AccountUnknown",
    "AmountRefused",
    "Amounts",
    "Balance",
    "BudgetBusy",
    "BudgetError",
    "BudgetExceeded",
    "Entry",
    "Hold",
    "HoldConflict",
    "HoldState",
    "HoldUnknown",
    "Ledger",
    "LedgerError",
    "Limit",
    "LimitTooLow",
    "MoveRefused",
    "Recovery",
    "Usage",
    "usd",
]
