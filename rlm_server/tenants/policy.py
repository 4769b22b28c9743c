"""A tenant's policy: its share of slots that tenants compete for, and which other models may answer its calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's own policy.

    Where several tenants wait for slots, it gets a share in proportion to `weight`. Of a route's fallbacks, those in
    `fallbacks` may answer; None allows all of them.
    """

    weight: float = 1.0
    fallbacks: frozenset[str] | None = frozenset()

    def allows(self, fallback: str) -> bool:
        """Whether this model may answer in place of another."""
        return self.fallbacks is None or fallback in self.fallbacks
