"""What requests get where they say nothing, and the most they may ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlm_server.ledger import Limit
from rlm_server.repl.limits import RunLimits
from rlm_server.tenants.terms import Terms
from sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Defaults:
    """The server's defaults. The first of `images` is the default one, `terms` has the ceilings of every tenant.

    `depth` is a run's where its request says nothing of it.
    """

    model: str
    sub_model: str
    budget: Limit
    terms: Terms
    depth: int
    images: tuple[str, ...]

    def limits_of(self, tenant: str) -> RunLimits:
        """Return what a tenant's runs and sessions may use at most."""
        return replace(self.terms.limits(tenant, RunLimits), sandbox=self.terms.limits(tenant, Limits))

    def images_of(self, tenant: str) -> tuple[str, ...]:
        """Return the images that a tenant's sandboxes may start from, the default one first."""
        return self.terms.policy(tenant).images_of(self.images)
