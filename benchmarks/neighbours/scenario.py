"""A scenario: what an attacker does, and what its account and the server are beside that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.neighbours.attacker import Attacker, Play

Prepare = Callable[["Attacker"], Awaitable["Play"]]
"""Makes what the attack needs, and returns what plays it."""

USD = 1_000_000_000
RICH: Mapping[str, int] = MappingProxyType({"nano_usd": 1_000 * USD})
POOR: Mapping[str, int] = MappingProxyType({"nano_usd": 1})
"""What cannot pay for a single call."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is played, and with what. Its name is its function's."""

    name: str
    prepare: Prepare
    limit: Mapping[str, int]
    """Of the attacker's account."""
    settings: Mapping[str, object]
    """Of the server, beside those that all scenarios have."""
    disk_mb: int
    """Of the server's disk; as large as it is where 0."""
    refusable: tuple[str, ...]
    """Kinds of the victim's calls that may be refused beside it."""
    keyless: bool
    """Whether it is work for nobody's key: what comes before a key is checked, which is bounded and not billed."""


class Table(dict[str, Scenario]):
    """Scenarios by name."""

    def of(
        self,
        limit: Mapping[str, int] = RICH,
        *,
        disk_mb: int = 0,
        refusable: tuple[str, ...] = (),
        keyless: bool = False,
        **settings: object,
    ) -> Callable[[Prepare], Prepare]:
        """Enter a function as a scenario."""

        def enter(prepare: Prepare) -> Prepare:
            name = prepare.__name__
            if name in self:
                raise ValueError(f"there are two scenarios called {name}")
            self[name] = Scenario(name, prepare, limit, settings, disk_mb, refusable, keyless)
            return prepare

        return enter
