"""What can go wrong in the ledger."""

from __future__ import annotations

from rlm_server.ledger.amounts import usd
from rlm_server.ledger.windows import described

MAX = 2**62
"""The largest amount of any unit that the ledger accepts: half of what its 64-bit columns hold."""


_WORDS = {"cpu_ms": "milliseconds of processor time"}


def quantity(unit: str, value: int) -> str:
    """Format an amount of a unit for people: dollars for money, a grouped number with its unit for the rest."""
    return usd(value) if unit == "nano_usd" else f"{value:,} {_WORDS.get(unit, unit)}"


class LedgerError(Exception):
    """Anything the ledger refuses. Nothing was changed."""


class BudgetError(LedgerError):
    """There is no room: `used` of `limit` is taken at `account`, and `asked` more does not fit.

    All three are in `unit`, one of `amounts.UNITS`. The message is fit for a model to read.
    """

    reason = ""

    def __init__(self, account: str, unit: str, limit: int, used: int, asked: int) -> None:
        super().__init__(
            f"this needs up to {quantity(unit, asked)}, but {quantity(unit, used)} of the limit of "
            f"{quantity(unit, limit)} of {described(account)} {self.reason}"
        )
        self.account = account
        self.unit = unit
        self.limit = limit
        self.used = used
        self.asked = asked


class BudgetExceeded(BudgetError):
    """It does not fit and waiting will not help: the room is spent, or promised to children."""

    reason = (
        "is already spent or promised. Ask for less (a shorter prompt, a smaller max_tokens, fewer calls, a cheaper "
        "model), or finish with what is known"
    )


class BudgetBusy(BudgetError):
    """Until the deadline other calls, in flight or earlier in the queue, were in the way. Trying again may help."""

    reason = "is taken for now, or wanted by calls that asked earlier, and was not free in time. Try again later"


class CustomerClosed(BudgetExceeded):
    """An account above was closed, so nothing more can be spent here."""

    def __init__(self, account: str, unit: str, limit: int, used: int, asked: int) -> None:
        super().__init__(account, unit, limit, used, asked)
        self.args = (f"{described(account)} was closed, and nothing more can be spent on it",)


class AmountRefused(LedgerError):
    """A number is negative or larger than the ledger can count. `field` names it."""

    def __init__(self, field: str, value: int) -> None:
        super().__init__(f"{field} is {value}; it must be between 0 and {MAX}")
        self.field = field
        self.value = value


class AccountUnknown(LedgerError):
    """The tenant has no account of this name."""

    def __init__(self, account: str) -> None:
        super().__init__(f"there is no {described(account)}; open it first")
        self.account = account


class AccountClosed(LedgerError):
    """The account was closed; nothing more may be held on it or opened under it."""

    def __init__(self, account: str) -> None:
        super().__init__(f"{described(account)} is closed; open another")
        self.account = account


class AccountConflict(LedgerError):
    """The account exists otherwise than it was to be, or cannot be what it was to be."""

    def __init__(self, account: str, why: str) -> None:
        super().__init__(f"{described(account)} {why}")
        self.account, self.why = account, why


class AccountExists(LedgerError):
    """The tenant has an account of this id, or had one."""

    def __init__(self, account: str, *, closed: bool) -> None:
        was = "was closed, and its id is not given again" if closed else "exists"
        super().__init__(f"account {account!r} {was}; choose another id")
        self.account = account


class TooManyAccounts(LedgerError):
    """The tenant has as many customers as it may; the message names the limit."""

    def __init__(self, limit: int, used: int) -> None:
        super().__init__(f"a tenant may have {limit} customers' accounts (tenant_accounts), and has {used}")
        self.limit, self.used = limit, used


class AccountInUse(LedgerError):
    """The account cannot be closed: holds on it are unresolved, or accounts under it are open."""

    def __init__(self, account: str, what: str) -> None:
        super().__init__(f"account {account!r} cannot be closed: {what}")


class LimitTooLow(LedgerError):
    """The new limit is below what is already used."""

    def __init__(self, account: str, unit: str, limit: int, used: int) -> None:
        super().__init__(
            f"account {account!r} cannot be limited to {quantity(unit, limit)}: {quantity(unit, used)} is already used"
        )
        self.account = account
        self.unit = unit
        self.limit = limit
        self.used = used


class HoldUnknown(LedgerError):
    """No hold has this id."""

    def __init__(self, hold: str) -> None:
        super().__init__(f"there is no hold {hold!r}; reserve it first")


class HoldConflict(LedgerError):
    """A hold of this id exists with other content."""

    def __init__(self, hold: str) -> None:
        super().__init__(f"hold {hold!r} exists with other content; every attempt needs an id of its own")


class StaleEpoch(LedgerError):
    """The hold was reserved by a former owner of the database, and nothing more may be sent for it."""

    def __init__(self, hold: str, epoch: int, now: int) -> None:
        super().__init__(f"hold {hold!r} was reserved in epoch {epoch}, and this is epoch {now}; reserve another")


class MoveRefused(LedgerError):
    """The hold cannot go where it was sent: it is resolved already, was dispatched already, or was not dispatched."""

    def __init__(self, hold: str, state: str, to: str) -> None:
        super().__init__(f"hold {hold!r} is {state} and cannot be {to}")
        self.hold = hold
        self.state = state
        self.to = to
