from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Ledger
from tests.ledger.accounting import Books


@pytest.fixture
async def books(database_at: str | Path) -> AsyncIterator[Books]:
    async with await Database.open(database_at, MIGRATIONS) as database:
        yield Books(Ledger(database), database, database_at)
