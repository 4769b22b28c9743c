"""All that tenants share of the server itself, in one value that goes to whoever needs a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlm_server.shares.held import Held
from rlm_server.shares.host_time import HostTimes
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.pace import Pace
from rlm_server.shares.threads import Threads


def _usual(_: str) -> TenantLimits:
    return TenantLimits()


@dataclass(frozen=True, slots=True)
class Shares:
    """What there is to share. `limits` returns a tenant's."""

    limits: Callable[[str], TenantLimits]
    threads: Threads
    held: Held
    host_times: HostTimes
    pace: Pace

    @classmethod
    def of(cls, limits: Callable[[str], TenantLimits] = _usual, weights: Mapping[str, float] | None = None) -> Shares:
        """Make what is to be shared by tenants with these limits, and weights in lines."""
        host_times = HostTimes()
        pace = Pace(host_times)
        held = Held(lambda tenant: limits(tenant).tenant_held_bytes)
        threads = Threads(weights=weights, pace=pace)
        host_times.under_way.append(threads.charge)
        return cls(limits, threads, held, host_times, pace)

    def close(self) -> None:
        """End the threads. No work may be under way."""
        self.threads.close()
