"""What servers of former versions left, as backups, and what these servers said of it before they stopped.

Each server was started from its commit. Commands of its own version gave it what it knew of tenants, keys, customers,
contexts and runs. Then it was stopped. The file beside the backup has, for each tenant, its key, keys of it that were
revoked, and what the server told it, in words that all versions have. Neither is ever made anew: another version is
another pair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Former:
    """A version: how many migrations its database had seen, and the commit that it was of."""

    schema: int
    commit: str

    @property
    def backup(self) -> Path:
        return FOLDER / f"schema-{self.schema:02}.backup"

    @property
    def told(self) -> dict[str, dict[str, Any]]:
        """What its server said, by tenant."""
        told: dict[str, dict[str, Any]] = json.loads((FOLDER / f"schema-{self.schema:02}.json").read_text())
        return told


OLDEST = Former(8, "560a7d7")
"""The first whose rooms are those of today. It knew one tenant and no backups: the copy was made by a later version."""

RECENT = Former(12, "dfa3e36")
"""The last before budgets of models, bound keys and contexts with names of their own; with tenants and customers."""

FORMER = (OLDEST, RECENT)
