"""What requests get where they say nothing, and the most they may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlm_server.ledger import Limit
from rlm_server.repl.limits import RunLimits
from sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Defaults:
    """The server's defaults. `limits` are ceilings as well; the first of `images` is the default one.

    `tenants` are the limits of sandboxes of those that have their own.
    """

    model: str
    sub_model: str
    budget: Limit
    limits: RunLimits
    images: tuple[str, ...]
    tenants: Mapping[str, Limits] = field(default_factory=dict)

    def sandbox(self, tenant: str) -> Limits:
        """Return what a tenant's sandboxes may use at most."""
        return self.tenants.get(tenant, self.limits.sandbox)
