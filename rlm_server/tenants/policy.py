"""What a tenant's calls get beside others', and what else may answer them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's own terms.

    Of slots that others wait for too it gets a share in proportion to `weight`. Where a route names fallbacks, those
    in `fallbacks` may answer; None allows all of them.
    """

    weight: float = 1.0
    fallbacks: frozenset[str] | None = frozenset()

    def allows(self, fallback: str) -> bool:
        """Whether this model may answer in place of another."""
        return self.fallbacks is None or fallback in self.fallbacks
