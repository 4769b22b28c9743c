"""The rows of uploads: what is refused or known already is answered without a write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlm_server.contexts.spool import Header
from rlm_server.contexts.upload_table import ContextQuotaExceeded, UploadQuota, UploadTable
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS

HEADER = Header("ann", "first", "text", 60, "0" * 64, 0)
QUOTA = UploadQuota(context_bytes=100, uploads=2, contexts=10)


@pytest.fixture
async def database(database_at: str | Path) -> AsyncIterator[Database]:
    async with await Database.open(database_at, MIGRATIONS) as opened:
        await opened.write(lambda db: db.execute("INSERT INTO tenant (id, created_at) VALUES ('ann', 1)"))
        yield opened


async def test_an_upload_that_is_refused_or_known_does_not_wait_for_the_writer(database: Database) -> None:
    table = UploadTable(database)
    first = await table.begin("a", HEADER, 1, QUOTA)
    commits = database.commits
    assert await table.begin("b", HEADER, 2, QUOTA) == first
    for _ in range(10):
        with pytest.raises(ContextQuotaExceeded) as refused:
            await table.begin("c", replace(HEADER, request_id="second"), 3, QUOTA)
    assert (refused.value.unit, refused.value.used, refused.value.asked) == ("context_bytes", 60, 60)
    assert database.commits == commits


async def test_of_uploads_that_begin_at_once_only_those_begin_that_there_is_room_for(database: Database) -> None:
    table = UploadTable(database)
    small = replace(HEADER, size_bytes=1)
    beginning = [table.begin(f"{n}", replace(small, request_id=f"{n // 2}"), n, QUOTA) for n in range(8)]
    answers = await asyncio.gather(*beginning, return_exceptions=True)
    begun = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len({row.id for row in begun}) == QUOTA.uploads
    assert len(await table.unfinished()) == QUOTA.uploads
    assert all(isinstance(answer, ContextQuotaExceeded) for answer in answers if isinstance(answer, BaseException))
