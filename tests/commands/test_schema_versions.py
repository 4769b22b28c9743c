"""What commands and a server do with a database of another version: an older one, a newer one, and none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from rlm_server.commands.doctor import Finding, examine_database
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.engine import DatabaseVersionError
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.snapshot import snapshot, tables
from rlm_server.server import serving

NEWEST = len(MIGRATIONS)
NEWER = (*MIGRATIONS, "CREATE TABLE newer (text TEXT NOT NULL) STRICT; INSERT INTO newer VALUES ('kept');")
REFUSED = (
    f"the database has schema version {NEWEST + 1}, this software knows up to {NEWEST}; use a newer one, "
    "or restore a backup of before the upgrade"
)


@pytest.fixture
def at(database_at: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str | Path:
    """Where the settings say that the database is."""
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path))
    if isinstance(database_at, str):
        monkeypatch.setenv("RLM_DATABASE_URL", database_at)
    assert Settings.load().database == database_at
    return database_at


async def made(at: str | Path, migrations: Sequence[str]) -> None:
    async with await Database.open(at, migrations):
        pass


def everything(at: str | Path) -> dict[str, list[Any]]:
    """All rows, and how many servers have had the database."""
    owner = "rlm_owner" if isinstance(at, str) else "owner"
    with snapshot(at) as found:
        rows = {table.name: [*map(tuple, found.rows(table.every_row))] for table in tables(NEWER)}
        return rows | {"epoch": [*found.rows(f"SELECT epoch FROM {owner}")], "schema": [found.schema]}


async def test_a_server_refuses_a_newer_database_and_changes_nothing(at: str | Path) -> None:
    await made(at, NEWER)
    before = everything(at)
    with pytest.raises(DatabaseVersionError) as refused:
        async with serving(Settings.load(listen="127.0.0.1:0")):
            pass
    assert str(refused.value) == REFUSED
    assert everything(at) == before


@pytest.fixture
async def newer(at: str | Path) -> str | Path:
    await made(at, NEWER)
    return at


def test_every_command_refuses_a_newer_database_and_changes_nothing(newer: str | Path, tmp_path: Path) -> None:
    before = everything(newer)
    for words in (
        ["migrate"],
        ["migrate", "--check"],
        ["backup", str(tmp_path / "copy")],
        ["prune", "--run-days", "1"],
        ["tenant", "list"],
        ["tenant", "create", "acme"],
        ["key", "create", "acme"],
    ):
        told = CliRunner().invoke(main, words)
        assert (told.exit_code, told.output) == (1, f"Error: {REFUSED}\n"), words
    assert everything(newer) == before
    assert not (tmp_path / "copy").exists()
    assert examine_database(Settings.load()) == Finding("database", False, REFUSED)


async def test_the_doctor_tells_an_older_database_from_none(at: str | Path) -> None:
    none = examine_database(Settings.load())
    assert (none.holds, none.detail.endswith("; the first start makes what it needs")) == (True, True)
    await made(at, MIGRATIONS[:5])
    told = f"schema version 5 of {NEWEST}; back it up: the next start brings it up to date"
    assert examine_database(Settings.load()) == Finding("database", True, told)
    await made(at, MIGRATIONS)
    assert examine_database(Settings.load()) == Finding("database", True, f"schema version {NEWEST} of {NEWEST}")


def test_a_database_that_cannot_be_read_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "rlm.sqlite").write_text("no database, but long enough to be looked at as one" * 20)
    found = examine_database(Settings.load(data_dir=tmp_path))
    assert (found.holds, "not a database" in found.detail) == (False, True)
    away = f"postgresql://nobody@/nothing?host={tmp_path}"
    found = examine_database(Settings.load(data_dir=tmp_path, database_url=away))
    assert (found.holds, found.detail.startswith("the database cannot be read: ")) == (False, True)


def test_no_database_is_not_up_to_date(at: str | Path) -> None:
    told = CliRunner().invoke(main, ["migrate", "--check"])
    assert (told.exit_code, "Traceback" in told.output) == (1, False)
    assert told.output in {f"Error: there is no database at {at}\n", "Error: no server has used the database yet\n"}
