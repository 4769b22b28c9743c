"""Tenants by what their clients' certificates name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlm_server.tenants.keys import Holder, Keys


class Identities:
    """Tells whose certificate this is: `table` has tenants by the names that certificates hold."""

    def __init__(self, keys: Keys, table: Mapping[str, str]) -> None:
        self._keys, self._table = keys, table

    async def holder_of(self, names: Iterable[str]) -> Holder | None:
        """Return the tenant that these names of one certificate lead to; None where there is none, or not one alone."""
        tenants = {self._table[name] for name in names if name in self._table}
        if len(tenants) != 1:
            return None
        (tenant,) = tenants
        return await self._keys.holder_named(tenant)
