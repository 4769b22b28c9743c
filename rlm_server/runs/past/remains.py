"""What stays of runs that have succeeded, so that others can continue them: of each tenant the newest."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlm_server.runs.past.entries import Said, Standing
from rlm_server.runs.past.run_file import RunFiles
from sandbox.pool.pool import Pool


@dataclass(frozen=True, slots=True)
class Continued:
    """What a run has of another that it continues."""

    run: str
    image: str
    messages: tuple[Said, ...]
    standing: Standing


class Remains:
    """The files and the sessions of runs that have succeeded. Of a tenant's, `most` says how many stay."""

    def __init__(self, files: RunFiles, pool: Pool, most: Callable[[str], int]) -> None:
        self._files, self._pool, self._most = files, pool, most
        self._runs: defaultdict[str, deque[str]] = defaultdict(deque)  # by tenant, the oldest first

    def restore(self, left: Iterable[tuple[str, str]]) -> None:
        """Take what a former process left: tenants and their runs, the oldest first."""
        for tenant, run in left:
            self._files.count(run, tenant)
            self.add(tenant, run)

    def add(self, tenant: str, run: str) -> None:
        """Take what is left of a run that has just succeeded. The oldest go where there are too many."""
        self._runs[tenant].append(run)
        while len(self._runs[tenant]) > self._most(tenant):
            self.remove(tenant, self._runs[tenant][0])

    def remove(self, tenant: str, run: str) -> None:
        """Remove what is left of a run, where anything is."""
        if not self.has(tenant, run):
            return
        self._runs[tenant].remove(run)
        if not self._runs[tenant]:
            del self._runs[tenant]
        self._files.remove(run, tenant)
        self._pool.forget(tenant, run)

    def forget(self, run: str) -> None:
        """Remove what is left of a run, whoever's it is."""
        for tenant in [tenant for tenant, runs in self._runs.items() if run in runs]:
            self.remove(tenant, run)

    def has(self, tenant: str, run: str) -> bool:
        """Return whether a run can be continued."""
        return run in self._runs.get(tenant, ())
