"""Who may have a live session: the slots of a pool, shared between owners.

An owner may use what is free. With n owners that have live sessions or wait for one, each is entitled to an n-th of all
slots. What an owner is entitled to is made free for it: idle sessions hibernate, first of whoever has most. A few slots
are a reserve, which only an owner with few live sessions may enter, so that no owner's busy turns keep others out.

This module counts and decides. What hibernates and how is the pool's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator

RESERVED_PART = 16
"""At most one of so many slots is reserved: a pool of few slots has no reserve."""
FEW_OF_RESERVE = 4
"""An owner has few live sessions while it has less than the reserve divided by this."""


class Asking:
    """One who waits in line for a slot. `granted` is True once there is one, and False if it was withdrawn before.

    The future must not be cancelled.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Slots:
    """`most` slots, of which up to `reserved` are a reserve."""

    def __init__(self, most: int, reserved: int = 0) -> None:
        self.most = most
        self.reserved = min(reserved, most // RESERVED_PART)
        self._live: Counter[str] = Counter()
        self._leaving: Counter[str] = Counter()  # of the live ones, those that hibernate
        self._line: list[Asking] = []

    def live(self, owner: str) -> int:
        """How many slots an owner has, those not counted whose sessions are about to leave them."""
        return self._live[owner] - self._leaving[owner]

    def knows(self, owner: str) -> bool:
        """Whether an owner has a slot or waits for one."""
        return self._live[owner] > 0 or any(asking.owner == owner for asking in self._line)

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return self._live.total()

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    @property
    def entitlement(self) -> float:
        """How many slots each owner is entitled to that has one or asks for one."""
        return self.most / max(1, len(self._live.keys() | {asking.owner for asking in self._line}))

    def is_entitled(self, owner: str) -> bool:
        """Whether an owner has less than it is entitled to."""
        return self._live[owner] < self.entitlement

    # ---- asking --------------------------------------------------------------------------------------------------

    def ask(self, owner: str) -> Asking:
        """Ask for a slot. It may be granted at once; else `give_out` grants it, unless it is withdrawn before."""
        asking = Asking(owner)
        self._line.append(asking)
        self.give_out()
        return asking

    def withdraw(self, asking: Asking) -> None:
        """Give up asking. Does nothing where the slot was granted."""
        if asking in self._line:
            self._line.remove(asking)
            asking.granted.set_result(False)
            self.give_out()

    def give_out(self) -> None:
        """Grant what is free to those in line, first to the owner with the fewest slots, and of one owner by age."""
        while (asking := next((one for one in self.in_order() if self._room(one.owner) > 0), None)) is not None:
            self._line.remove(asking)
            self._live[asking.owner] += 1
            asking.granted.set_result(True)

    def in_order(self) -> list[Asking]:
        """Return those in line, the next to be served first."""
        return sorted(self._line, key=lambda asking: self._live[asking.owner])

    def _room(self, owner: str) -> int:
        """Return how many slots are free for an owner; below 0 by so many as are missing in the reserve."""
        return self.most - self.taken - self._kept_from(owner)

    def _kept_from(self, owner: str) -> int:
        """Return how many slots an owner must leave free."""
        few = min(self.entitlement, max(1, self.reserved // FEW_OF_RESERVE))
        return self.reserved if self._live[owner] >= few else 0

    # ---- making room ---------------------------------------------------------------------------------------------

    def lacking(self) -> Iterator[Asking]:
        """Yield, for each session that must leave for those in line, who is in want of that.

        Those that are leaving already count. The caller notes each other one with `leave` before it goes on. Where it
        has none that may leave, nothing more is wanted on behalf of that one.
        """
        free = self.most - self.taken + self._leaving.total()
        for asking in self.in_order():
            while free <= self._kept_from(asking.owner):
                leaving = self._leaving.total()
                yield asking
                if self._leaving.total() == leaving:
                    break
                free += 1
            else:
                free -= 1

    def yielding(self, owner: str, idle: Collection[str]) -> str | None:
        """Return which of the owners with idle sessions has one leave, so that `owner` may have a slot; None for none.

        It is the one with most slots, if that is above its entitlement and has more than who asks; or else who asks.
        """
        most = max(idle, key=lambda one: (self.live(one), one == owner), default=None)
        if most is not None and self.live(most) > self.entitlement and self.live(most) > self.live(owner):
            return most
        return owner if owner in idle else None

    def leave(self, owner: str) -> None:
        """Note that a session of an owner is about to leave its slot."""
        self._leaving[owner] += 1

    def stay(self, owner: str) -> None:
        """Note that a session that was about to leave its slot has left it, or stays."""
        self._leaving[owner] -= 1
        if not self._leaving[owner]:
            del self._leaving[owner]

    def free(self, owner: str) -> None:
        """Free one of an owner's slots."""
        self._live[owner] -= 1
        if not self._live[owner]:
            del self._live[owner]
        self.give_out()
