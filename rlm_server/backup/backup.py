"""What goes into a backup, and how it is put back.

The database comes first: the files of a context are in place before its row is. Its rows are kept as JSON, so that a
backup of SQLite can be put into Postgres, and the other way round.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rlm_server.backup.archive import BackupError, Contents, Member, Writer, checked, written
from rlm_server.config.private_files import SESSION_SECRET
from rlm_server.config.settings import Settings
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection, is_postgres, unseen
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.snapshot import Snapshot, Table, put, snapshot, tables

ATTEMPTS = 5
"""Contexts may be deleted while a backup begins; then it begins anew, so often."""
FILES = ("texts", "index")
"""Of each content."""
ALONE = ("stated-prices.json", "development-key", SESSION_SECRET)
"""Files of the data directory that are kept besides."""
_FILE = re.compile(rf"contexts/[A-Za-z0-9_-]+/({'|'.join(FILES)})|sessions/[A-Za-z0-9_-]+\.(session|snapshot)")


class _Gone(Exception):
    """A context was deleted meanwhile."""


def back_up(settings: Settings, path: Path) -> Contents:
    """Write all that a server keeps into one file, whether or not it runs. Returns what the file holds.

    Unfinished uploads are left out. So are contexts that an object store keeps. The state of a session that lives is
    that of a turn which had ended when its file was copied.

    Raises:
        BackupError: the file is there already, or cannot be written.
        DatabaseError: the database cannot be read, or a newer version has used it.
    """
    linked = settings.data_dir / f".backup-{secrets.token_hex(8)}"
    try:
        for _ in range(ATTEMPTS):
            try:
                with snapshot(settings.database) as found:
                    unseen(MIGRATIONS, found.schema)  # which refuses a newer one
                    files = _linked(settings, found, linked)
                    with written(path) as writer:
                        return _fill(settings, found, files, writer)
            except _Gone:
                shutil.rmtree(linked, ignore_errors=True)
        raise BackupError("contexts are deleted faster than they can be copied: try again")
    finally:
        shutil.rmtree(linked, ignore_errors=True)


def _linked(settings: Settings, found: Snapshot, into: Path) -> list[tuple[str, Path]]:
    """Hold on to the files of contexts and sessions: links go on where a context is deleted."""
    into.mkdir(mode=0o700)
    names = _copied_sessions(settings, into)
    if settings.context_store:
        return names
    kept_in = "content" if "content" in {table.name for table in tables(MIGRATIONS[: found.schema])} else "context"
    for (content,) in found.rows(f"SELECT id FROM {kept_in} WHERE deleted_at IS NULL"):  # noqa: S608 - one of two names
        for file in FILES:
            link = into / f"{content}.{file}"
            try:
                os.link(settings.data_dir / "contexts" / content / file, link)
            except FileNotFoundError:
                raise _Gone from None
            names.append((f"contexts/{content}/{file}", link))
    return names


def _copied_sessions(settings: Settings, into: Path) -> list[tuple[str, Path]]:
    """Copy the files of sessions, each as it was at one moment: their servers write to them."""
    names: list[tuple[str, Path]] = []
    for file in sorted((settings.data_dir / "sessions").glob("*")):
        name, copy = f"sessions/{file.name}", into / file.name
        if _FILE.fullmatch(name):
            with suppress(FileNotFoundError):  # the session ended just now
                for _ in range(ATTEMPTS):
                    before = file.stat()
                    shutil.copyfile(file, copy)
                    after = file.stat()
                    if (before.st_ino, before.st_size, before.st_mtime_ns) == (
                        after.st_ino, after.st_size, after.st_mtime_ns,
                    ):  # fmt: skip
                        break
                names.append((name, copy))
    return names


def _fill(settings: Settings, found: Snapshot, files: Sequence[tuple[str, Path]], writer: Writer) -> Contents:
    for table in tables(MIGRATIONS[: found.schema]):
        with tempfile.TemporaryFile(dir=settings.data_dir) as rows:
            for row in found.rows(table.every_row):
                rows.write(json.dumps(list(row)).encode() + b"\n")
            rows.flush()
            writer.add(f"tables/{table.name}", rows)
    for name, path in files:
        with path.open("rb") as file:
            writer.add(name, file)
    for name in ALONE:
        with suppress(FileNotFoundError), (settings.data_dir / name).open("rb") as file:
            writer.add(name, file)
    version, created = metadata.version("rlm-server"), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return writer.finish(version, found.schema, created)


async def restore(settings: Settings, path: Path) -> Contents:
    """Put a backup where the settings say, where nothing is yet. The next start brings it up to date.

    Raises:
        BackupError: something is there already, or the backup is not whole, or of a newer version.
        DatabaseError: the database cannot be written.
        OSError: the data directory cannot be written.
    """
    with checked(path) as (contents, tar):
        if contents.schema > len(MIGRATIONS):
            raise BackupError(
                f"{path} was made by version {contents.version}, with schema version {contents.schema}; this software "
                f"knows up to {len(MIGRATIONS)}: use that version, or a newer one"
            )
        _refuse_data(settings)
        files = settings.data_dir / f".restore-{secrets.token_hex(8)}"
        files.mkdir(mode=0o700, parents=True)
        try:
            for member in contents.members:
                _extract(tar, member, files)
            await _fill_database(settings, contents, tar)
            for entry in sorted(files.iterdir()):
                os.rename(entry, settings.data_dir / entry.name)
        finally:
            shutil.rmtree(files, ignore_errors=True)
    return contents


def _refuse_data(settings: Settings) -> None:
    """Refuse to put anything where something is."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("rlm.sqlite", "contexts", "sessions", *ALONE):
        there = settings.data_dir / name
        if there.is_file() or (there.is_dir() and any(there.iterdir())):
            raise BackupError(f"{there} is there already: a backup is put into an empty data directory (data_dir)")


def _extract(tar: tarfile.TarFile, member: Member, into: Path) -> None:
    """Write a member that is a file of the data directory, with the time it had: a context's files are known by it."""
    if not (_FILE.fullmatch(member.name) or member.name in ALONE):
        return
    path = into / member.name
    for folder in reversed(path.relative_to(into).parents[:-1]):
        (into / folder).mkdir(exist_ok=True, mode=0o700)
    file: Any = tar.extractfile(member.name)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    os.utime(path, ns=(member.mtime_ns, member.mtime_ns))


async def _fill_database(settings: Settings, contents: Contents, tar: tarfile.TarFile) -> None:
    schema, at = MIGRATIONS[: contents.schema], settings.database
    async with await Database.open(at, schema) as database:
        await database.write(_filling(tables(schema), tar, postgres=is_postgres(at)))


def _filling(known: Sequence[Table], tar: tarfile.TarFile, *, postgres: bool) -> Callable[[Connection], None]:
    def rows(table: Table) -> Iterator[Sequence[Any]]:
        file: Any = tar.extractfile(f"tables/{table.name}")
        return (json.loads(line) for line in file)

    def fill(connection: Connection) -> None:
        for table in known:
            (rows_there,) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608
            if rows_there != table.first_rows:
                raise BackupError("the database is not empty: a backup is put into an empty one")
        for table in known:
            if table.first_rows:
                connection.execute(f"DELETE FROM {table.name}")  # noqa: S608
            put(connection, table, rows(table), postgres=postgres)

    return fill
