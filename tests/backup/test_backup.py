"""A backup that was made while the server ran is put back elsewhere whole, or not at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlm_server.backup.archive import LIST, BackupError
from rlm_server.backup.backup import back_up, restore
from rlm_server.commands.cli import main
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from tests.databases import postgres_database, postgres_server
from tests.servers import Served
from tests.system.context_calls import ContextCalls, stored
from tests.system.stage import Play, code

PLAY = Play(code("print(rlm_query('child', context[:4]))", "FINAL(context[:4])"), child=code("FINAL(llm_query('x'))"))


@pytest.fixture(scope="module")
def postgres_of_all() -> Iterator[str]:
    with postgres_server() as top:
        yield top


@pytest.fixture
def database(postgres_of_all: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    with ExitStack() as stack:
        yield (
            lambda kind: (
                {"database_url": stack.enter_context(postgres_database(postgres_of_all))} if kind == "postgres" else {}
            )
        )


@pytest.mark.parametrize(
    ("before", "after"),
    [("sqlite", "sqlite"), ("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres")],
)
async def test_what_was_backed_up_while_the_server_ran_is_there_elsewhere(
    server: Served, tmp_path: Path, database: Callable[[str], dict[str, Any]], before: str, after: str
) -> None:
    here, there, copy = database(before), database(after), tmp_path / "backup"
    async with server(PLAY, **here) as served:
        first = await served.caller.upload("a text that stays")
        text = await served.caller.upload("a text that stays")
        await ContextCalls(served.caller).delete(first.context_id)
        run = (await served.caller.ask(context_id=text.context_id)).run
        settings = Settings.load(data_dir=served.data_dir, **here)
        session = await served.caller.open_session(context_id=text.context_id)
        await served.caller.turn(session, "words = context.split()")
        contents = await asyncio.to_thread(back_up, settings, copy)
        await served.caller.turn(session, "words = None")
        await served.caller.upload("one more, which is in no backup")
        spent = (await served.running.ledger.balance("development")).posted
        key, story = served.running.key, await served.caller.ended(run.run_id)
    assert contents.schema == len(MIGRATIONS)
    assert copy.stat().st_mode & 0o077 == 0

    elsewhere = tmp_path / "elsewhere"
    await restore(Settings.load(data_dir=elsewhere, **there), copy)
    async with server(PLAY, data_dir=elsewhere, **there) as served:
        assert served.running.key == key
        assert await served.caller.ended(run.run_id) == story
        kept = (await served.running.ledger.balance("development")).posted
        assert (kept.nano_usd, kept.tokens, kept.calls) == (spent.nano_usd, spent.tokens, spent.calls)
        assert await ContextCalls(served.caller).get(text.context_id) == text
        assert stored(elsewhere) == {first.context_id}, "the files have the id of the first context that had them"
        assert (await served.caller.upload("a text that stays")).context_id != text.context_id
        assert stored(elsewhere) == {first.context_id}
        assert (await served.caller.ask(context_id=text.context_id)).run.answer == "a te"
        assert (await served.caller.turn(session, "words[1]")).printed == "'text'\n"
        new = await served.caller.upload("a new text")
        assert new.context_id != text.context_id


@pytest.fixture
async def made(server: Served, tmp_path: Path) -> Path:
    """A backup of a server that had a context."""
    async with server(PLAY) as served:
        await served.caller.upload("a text")
        await asyncio.to_thread(back_up, Settings.load(data_dir=served.data_dir), tmp_path / "backup")
    return tmp_path / "backup"


async def refused(path: Path, into: Path) -> str:
    """Why a backup is not put back; nothing of it is."""
    with pytest.raises(BackupError) as caught:
        await restore(Settings.load(data_dir=into), path)
    assert not list(into.glob("*"))  # noqa: ASYNC240 - a test's own folder
    return str(caught.value)


async def test_a_backup_that_was_cut_or_changed_is_refused_whole(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()  # noqa: ASYNC240
    with tarfile.open(made) as tar:
        heads = [info.offset for info in tar.getmembers()]
        places = [*heads, *(info.offset_data for info in tar.getmembers() if info.size)]
    cut = tmp_path / "cut"
    for place in (0, 1, *places[1:], len(whole) // 2):
        cut.write_bytes(whole[:place])
        assert "not a whole backup" in await refused(cut, tmp_path / "other"), place
    for place in [place + 1 for place in places]:
        cut.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "nothing of it was used" in await refused(cut, tmp_path / "other"), place


async def test_a_backup_is_put_into_nothing_but_an_empty_place(made: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*"))
    with pytest.raises(BackupError, match=r"rlm.sqlite is there already"):
        await restore(Settings.load(data_dir=data_dir), made)
    assert sorted((path, path.stat().st_mtime_ns) for path in data_dir.rglob("*")) == before


async def test_a_backup_is_put_into_no_postgres_database_that_has_anything(
    made: Path, server: Served, tmp_path: Path, database: Callable[[str], dict[str, Any]]
) -> None:
    there = database("postgres")
    async with server(PLAY, data_dir=tmp_path / "used", **there):
        pass
    into = tmp_path / "other"
    with pytest.raises(BackupError, match="the database is not empty"):
        await restore(Settings.load(data_dir=into, **there), made)
    assert not list(into.iterdir())


async def test_a_place_that_cannot_be_written_is_not_said_of_the_backup(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    into = tmp_path / "other"
    with monkeypatch.context() as small:
        small.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left on device"):
            await restore(Settings.load(data_dir=into), made)
    assert not list(into.iterdir())
    await restore(Settings.load(data_dir=into), made)


async def test_a_backup_of_a_newer_version_is_refused_by_its_version(made: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    with tarfile.open(made) as old, tarfile.open(newer, "w") as new:
        for info in old.getmembers():
            file: Any = old.extractfile(info)
            if info.name == LIST:
                said = json.loads(file.read()) | {"schema": len(MIGRATIONS) + 1, "version": "9.9.9"}
                (tmp_path / "list").write_text(json.dumps(said))
                new.add(tmp_path / "list", LIST)
            else:
                new.addfile(info, file)
    said = await refused(newer, tmp_path / "other")
    assert f"made by version 9.9.9, with schema version {len(MIGRATIONS) + 1}" in said


async def test_a_backup_of_an_older_schema_is_brought_up_to_date_by_the_next_start(
    server: Served, tmp_path: Path
) -> None:
    old = MIGRATIONS[:-1]
    data_dir = tmp_path / "old"
    data_dir.mkdir(mode=0o700)
    async with await Database.open(data_dir / "rlm.sqlite", old) as opened:
        await opened.write(
            lambda connection: connection.execute("INSERT INTO tenant (id, created_at) VALUES ('ann', 1)")
        )
    contents = await asyncio.to_thread(back_up, Settings.load(data_dir=data_dir), tmp_path / "backup")
    assert contents.schema == len(old)
    await restore(Settings.load(data_dir=tmp_path / "new"), tmp_path / "backup")
    async with server(PLAY, data_dir=tmp_path / "new"):
        pass
    with sqlite3.connect(tmp_path / "new" / "rlm.sqlite") as found:
        assert found.execute("SELECT id FROM tenant ORDER BY id").fetchall() == [("ann",), ("development",)]


async def test_a_context_that_is_deleted_while_a_backup_begins_is_in_no_backup(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlm_server.backup import backup

    async with server(PLAY) as served:
        kept, gone = await served.caller.upload("kept"), await served.caller.upload("gone")
        linked, times = backup._linked, 0

        def once_gone(settings: Settings, found: Any, into: Path) -> Any:
            nonlocal times
            times += 1
            if times == 1:
                with sqlite3.connect(settings.data_dir / "rlm.sqlite") as other:
                    other.execute("UPDATE content SET deleted_at = 1 WHERE id = ?", (gone.context_id,))
                (settings.data_dir / "contexts" / gone.context_id / "index").unlink()
            return linked(settings, found, into)

        monkeypatch.setattr(backup, "_linked", once_gone)
        settings = Settings.load(data_dir=served.data_dir)
        contents = await asyncio.to_thread(back_up, settings, tmp_path / "backup")
        names = {member.name for member in contents.members if member.name.startswith("contexts/")}
        assert names == {f"contexts/{kept.context_id}/{file}" for file in ("texts", "index")}
        assert times == 2


def test_the_commands_say_what_they_did_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, copy = tmp_path / "data", tmp_path / "backup"
    monkeypatch.setenv("RLM_DATA_DIR", str(data_dir))

    def said(*words: str) -> tuple[int, str]:
        told = CliRunner().invoke(main, words)
        assert "Traceback" not in told.output
        return told.exit_code, told.output

    assert said("backup", str(copy)) == (1, f"Error: there is no database at {data_dir / 'rlm.sqlite'}\n")
    data_dir.mkdir(mode=0o700)
    newest = len(MIGRATIONS)
    assert said("migrate") == (0, f"the database has schema version {newest}\n")
    assert said("migrate", "--check") == (0, f"the database has schema version {newest} of {newest}\n")
    code, output = said("backup", str(copy))
    assert (code, output.startswith(f"{copy}: 0 contexts, ")) == (0, True)
    assert said("backup", str(copy)) == (1, f"Error: {copy} is there already: name another file\n")
    assert said("restore", str(copy))[0] == 1
    monkeypatch.setenv("RLM_DATA_DIR", str(tmp_path / "other"))
    assert said("restore", str(copy))[0] == 0
    assert said("restore", str(tmp_path / "nothing")) == (
        1, f"Error: {tmp_path / 'nothing'} cannot be read: No such file or directory\n"
    )  # fmt: skip
    with sqlite3.connect(tmp_path / "other" / "rlm.sqlite") as found:
        found.execute(f"PRAGMA user_version = {newest - 1}")
    assert said("migrate", "--check") == (1, f"the database has schema version {newest - 1} of {newest}\n")
    with sqlite3.connect(tmp_path / "other" / "rlm.sqlite") as found:
        found.execute(f"PRAGMA user_version = {newest + 1}")
    for words in (["migrate", "--check"], ["migrate"], ["backup", str(tmp_path / "third")]):
        code, output = said(*words)
        assert (code, f"schema version {newest + 1}" in output) == (1, True)
    assert not (tmp_path / "third").exists()
