"""An attack: what a guest runs, how its turn may end, and what must be seen of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from sandbox.limits import MIB, Limits
from sandbox.turn import Status, Stop, Turn


@dataclass(frozen=True)
class Attack:
    """`ends` names how the turn may end: "ok", a `Stop`, or the type of the exception that it raised.

    `shows` is the whole output where it is given, and `check` takes a further look at the turn.
    """

    name: str
    code: str
    ends: tuple[str, ...] = ("ok",)
    shows: str | None = None
    check: Callable[[Turn], bool] | None = None
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def bounds(self) -> Limits:
        """The limits of the session it runs in."""
        return Limits(**{"turn_seconds": 10.0, "memory_bytes": 96 * MIB, **self.limits})  # type: ignore[arg-type]


def refused(name: str, code: str, *errors: str, **limits: float) -> Attack:
    """Make an attack that must fail with one of these exceptions."""
    return Attack(name, code, errors, limits=limits)


def shows(name: str, code: str, output: str, **limits: float) -> Attack:
    """Make an attack that gets to its end and prints exactly this."""
    return Attack(name, code, ("ok",), output, limits=limits)


def stopped(name: str, code: str, *stops: str, **limits: float) -> Attack:
    """Make an attack whose turn is stopped and rolled back."""
    return Attack(name, code, stops or (Stop.TURN_TIME,), limits={"turn_seconds": 0.3} | limits)


def ended(turn: Turn) -> str:
    """Say how a turn ended, in the words of `Attack.ends`."""
    if turn.error is None:
        assert turn.status is Status.OK
        return "ok"
    assert turn.status is (Status.ROLLED_BACK if isinstance(turn.error.type, Stop) else Status.ERROR)
    return str(turn.error.type)


def each(attacks: Iterable[Attack]) -> pytest.MarkDecorator:
    """Run a test with each of the attacks."""
    return pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in attacks])
