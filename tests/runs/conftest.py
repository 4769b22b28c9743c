from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.runs.journal import Journal
from rlm_server.tenants.tenants import Tenants


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database with two tenants."""
    async with await Database.open(tmp_path / "rlm.sqlite", MIGRATIONS) as opened:
        for tenant in ("acme", "other"):
            await Tenants(opened).ensure(tenant)
        yield opened


@pytest.fixture
def journal(database: Database) -> Journal:
    return Journal(database)
