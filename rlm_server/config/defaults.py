"""What requests get where they say nothing, and the most they may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlm_server.ledger import Limit
from rlm_server.repl.limits import RunLimits


@dataclass(frozen=True, slots=True)
class Defaults:
    """The server's defaults. `limits` are ceilings as well; the first of `images` is the default one.

    `tenants` are the limits of those that have their own. `depth` is a run's where its request says nothing of it.
    """

    model: str
    sub_model: str
    budget: Limit
    limits: RunLimits
    depth: int
    images: tuple[str, ...]
    tenants: Mapping[str, RunLimits] = field(default_factory=dict)

    def limits_of(self, tenant: str) -> RunLimits:
        """Return what a tenant's runs and sessions may use at most."""
        return self.tenants.get(tenant, self.limits)
