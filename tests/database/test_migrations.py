"""A database of any former version comes up to date with all that is in it, and what was released stays as it was."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

from rlm_server.contexts.context_table import ContextTable
from rlm_server.contexts.upload_table import UploadTable
from rlm_server.database import migrations
from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS, scripts
from rlm_server.database.requests import Request
from rlm_server.ledger import Amounts, Ledger, Limit, Query, Span, Usage
from rlm_server.runs.journal import Journal
from rlm_server.tenants.keys import Keys

ROOT = Path(__file__).parents[2]
FOLDER = Path(str(resources.files(migrations)))

PINNED = {
    "0001_contexts_and_keys.sql": "2ef0845b5a56eaa4bd35681c215589519508b64064330f426264f56c954daba7",
    "0002_accounts_and_holds.sql": "4a64b7ca0b6d44c66b45369eedc8ece5c6b5c2150cf8a8fbd80fc04207d4c060",
    "0003_runs_and_nodes.sql": "3a82173fca3735c06085b7a29ede9e261520d0d76ae9ec1b30ffe84918a80ff3",
    "0004_runs_outlive_contexts.sql": "280d873e0b6de081a3814c436ecce9c697c549c035efb8bd304ceae643e5b8a8",
    "0005_contexts_as_folders.sql": "aa7946e9bce4f1bddb9d99ae166cf713d94e55ab7542da2b2a49632d9533c60e",
    "0006_coverage.sql": "cce5fbc94a00a51eab6b48afa5c0e69628a285ab5e2c3424aaf543b456834072",
    "0007_processor_time_and_windows.sql": "9a6f6d56d8bf6122a5e3fb472fffea55198eb1d5891f96471f0cdd7769ffd9e9",
    "0008_node_numbers.sql": "400cd42a2bd7cc9cc6d53e87882508008bcc367f9c95685062ee15a2bf6296c9",
    "0009_kept_bytes.sql": "e4e4e829db0df34b1464bc676c03ab6bb65db2c93dfa3ababe7fac5f3ac13de0",
    "0010_tenants_and_operators.sql": "4b1616865a61564df624fee39438c9a99476e18e5bd456a4544671646172c00a",
    "0011_customers.sql": "766f93428e61f38f15f59ff47f3fd7fc2879797bb1f5888cd01c9d89761bccf6",
    "0012_sessions.sql": "1a1317c7d2a7df55de49c26c06f5f8162cd581f89c75696d12704faaa9617f98",
    "0013_budgets.sql": "095432ad8d75a3f6299a65d778b6c8d71cd129dc534cc220c9a887f32f8b0a48",
    "0014_contents.sql": "06ff7bbac4f8df4de2d223518d7a99929f8aba2f20fbec697df4a67fa051b387",
    "0015_redaction.sql": "2acc84d07bf184eb97f28bb04f1242c509421cb40d8462a38019f5b777aec6b7",
    "0016_asked.sql": "02afcbc15fa9a0948aa4bc48b07467772ab888b23c834a426ee1cae4bb94fd7e",
}
"""The SHA-256 of every script that a database may have seen, in the order in which it saw them."""


# ---- what was released ---------------------------------------------------------------------------------------------


def digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()


def fault(found: Mapping[str, str], pinned: Mapping[str, str]) -> str | None:
    """What is wrong with the scripts found, and what to do about it; None where nothing is."""
    last = f"{len(pinned) + 1:04}_what_it_changes.sql"
    for place, (name, sha256) in enumerate(pinned.items()):
        if name not in found:
            return f"{name} is gone, which databases have seen: put it back, and take back what it did in {last}"
        if list(found)[place] != name:
            return f"{list(found)[place]} stands before {name}, which databases have seen: make it the last, {last}"
        if digest(found[name]) != sha256:
            return f"{name} was changed, which databases have seen: put it back as it was, and write {last} instead"
    for name in list(found)[len(pinned) :]:
        return f'{name} is not pinned: add the line `"{name}": "{digest(found[name])}",` to PINNED'
    return None


def test_what_was_released_stays_as_it_was() -> None:
    wrong = fault(scripts(FOLDER), PINNED)
    assert wrong is None, wrong


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"1_a": "a", "2_b": "B", "3_c": "c"}, "2_b was changed, which .* write 0004_what_it_changes.sql instead"),
        ({"1_a": "a", "2_x": "x", "2_b": "b", "3_c": "c"}, "2_x stands before 2_b, .* make it the last, 0004_"),
        ({"1_a": "a", "2_x": "x", "3_b": "b", "4_c": "c"}, "2_b is gone, .* put it back"),
        ({"1_a": "a", "2_b": "b"}, "3_c is gone"),
        ({"2_b": "b", "1_a": "a", "3_c": "c"}, "2_b stands before 1_a"),
        ({"1_a": "a", "2_b": "b", "3_c": "c", "4_d": "d"}, f'4_d is not pinned: .*"4_d": "{digest("d")}"'),
    ],
    ids=["changed", "inserted", "renumbered", "removed", "exchanged", "added"],
)
def test_a_change_to_what_was_released_is_seen_and_it_is_said_what_to_do(found: dict[str, str], message: str) -> None:
    released = {"1_a": "a", "2_b": "b", "3_c": "c"}
    pinned = {name: digest(script) for name, script in released.items()}
    assert fault(released, pinned) is None
    assert re.search(message, fault(found, pinned) or "nothing is wrong")


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["0001_a.sql", "0003_c.sql"], "0003_c.sql"),
        (["0002_b.sql"], "0002_b.sql"),
        (["0001_a.sql", "0002_b.sql", "0002_c.sql"], "0002_c.sql"),
        (["0001_a.sql", "2_b.sql"], "2_b.sql"),
        (["0001_a.sql", "0002-b.sql"], "0002-b.sql"),
        (["0001_a.sql", "0002_b.SQL"], "0002_b.SQL"),
    ],
)
def test_a_script_whose_place_in_the_order_is_not_known_is_refused(
    tmp_path: Path, names: Sequence[str], wrong: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(RuntimeError, match=f"'{wrong}' is where number 000{len(names)} belongs"):
        scripts(tmp_path)


def test_the_wheel_holds_every_script(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.Path(wheel) / "rlm_server" / "database" / "migrations"
    held = {entry.name: entry.read_text("utf-8") for entry in inside.iterdir() if entry.name.endswith(".sql")}
    assert held == scripts(FOLDER)


# ---- what databases of former versions hold ------------------------------------------------------------------------

KEY = "rlm_the-key-of-acme"
_ACCOUNT = {f"{group}_{unit}": 0 for group in ("posted", "pending", "carved", "overrun")
            for unit in ("nano_usd", "tokens", "calls")}  # fmt: skip
_HOLD = {"account": "acme", "tenant": "acme", "run": "run", "node": "n", "model": "m", "price_version": "v"}
_ENDED = {"nano_usd": 5, "tokens": 1, "calls": 1, "state": "posted", "actual_tokens": 1, "actual_calls": 1,
          "input": 6, "output": 0, "cache_read": 0, "cache_write": 0, "reasoning": 0}  # fmt: skip
_NODE = {"run": "run", "depth": 0, "state": "succeeded", "question": ""}


@dataclass(frozen=True)
class Row:
    """A row that a server of a version wrote: from `since` on and, where that is given, up to `until`."""

    table: str
    values: dict[str, object]
    since: int
    until: int | None = None


ROWS = (
    Row("tenant", {"id": "acme", "created_at": 1}, since=1),
    Row("api_key", {"sha256": digest(KEY), "prefix": KEY[:10], "tenant": "acme", "created_at": 1}, since=1, until=9),
    Row("api_key", {"id": "key_1", "sha256": digest(KEY), "prefix": KEY[:10], "tenant": "acme", "created_at": 1},
        since=10),
    Row("context", {"id": "ctx", "tenant": "acme", "name": "of old", "sha256": "s", "size_bytes": 1, "characters": 1,
                    "form": "ASCII", "created_at": 1}, since=1, until=4),
    Row("context", {"id": "ctx", "tenant": "acme", "identity": "i", "name": "kept", "kind": 1, "sha256": "s",
                    "size_bytes": 1, "characters": 1, "documents": 1, "texts_size": 1, "texts_mtime_ns": 1,
                    "texts_sha256": "t", "index_size": 1, "index_mtime_ns": 1, "index_sha256": "x", "created_at": 1,
                    "used_at": 1}, since=5, until=13),
    Row("context", {"id": "gone", "tenant": "acme", "identity": "i", "name": "", "kind": 1, "sha256": "s",
                    "size_bytes": 1, "characters": 1, "documents": 1, "texts_size": 1, "texts_mtime_ns": 1,
                    "texts_sha256": "t", "index_size": 1, "index_mtime_ns": 1, "index_sha256": "x", "created_at": 1,
                    "used_at": 1, "deleted_at": 1}, since=5, until=13),
    Row("content", {"id": "ctx", "tenant": "acme", "identity": "i", "kind": 1, "sha256": "s", "size_bytes": 1,
                    "characters": 1, "documents": 1, "texts_size": 1, "texts_mtime_ns": 1, "texts_sha256": "t",
                    "index_size": 1, "index_mtime_ns": 1, "index_sha256": "x"}, since=14),
    Row("context", {"id": "ctx", "tenant": "acme", "content": "ctx", "name": "kept", "created_at": 1, "used_at": 1},
        since=14),
    Row("upload", {"id": "up", "tenant": "acme", "request_id": "once", "name": "kept", "size_bytes": 1, "sha256": "s",
                   "documents": 0, "changed_at": 1, "context": "ctx"}, since=5),
    Row("account", {**_ACCOUNT, "id": "acme", "tenant": "acme", "carve": 0, "closed": 0, "limit_nano_usd": 100,
                    "posted_nano_usd": 7, "pending_nano_usd": 5}, since=2),
    Row("account", {**_ACCOUNT, "id": "run", "tenant": "acme", "parent": "acme", "carve": 0, "closed": 1}, since=2),
    Row("hold", {**_HOLD, **_ENDED, "id": "late", "reserved_at": 1, "resolved_at": 9, "actual_nano_usd": 4},
        since=2, until=6),
    Row("hold", {**_HOLD, **_ENDED, "id": "early", "reserved_at": 2, "resolved_at": 8, "actual_nano_usd": 3},
        since=2, until=6),
    Row("hold", {**_HOLD, **_ENDED, "id": "late", "reserved_at": 1, "resolved_at": 9, "actual_nano_usd": 4,
                 "actual_cpu_ms": 0, "epoch": 1, "entry": 2}, since=7),
    Row("hold", {**_HOLD, **_ENDED, "id": "early", "reserved_at": 2, "resolved_at": 8, "actual_nano_usd": 3,
                 "actual_cpu_ms": 0, "epoch": 1, "entry": 1}, since=7),
    Row("hold", {**_HOLD, "id": "sent", "nano_usd": 5, "tokens": 0, "calls": 0, "reserved_at": 3,
                 "state": "dispatched"}, since=2),
    Row("tenant_window", {"tenant": "acme", "span": "day", "limit_nano_usd": 50}, since=7, until=10),
    Row("window_limit", {"account": "acme", "span": "day", "limit_nano_usd": 50, "since": 1}, since=11),
    Row("run", {"id": "run", "tenant": "acme", "request_id": "asked", "context": "ctx", "model": "m", "sub_model": "s",
                "limit_nano_usd": 1, "created_at": 1}, since=3),
    Row("request", {"tenant": "acme", "method": "CreateRun", "request_id": "asked", "content_sha256": "",
                    "answer": "run", "at": 1}, since=11),
    Row("node", {**_NODE, "id": "run"}, since=3, until=7),
    Row("node", {**_NODE, "id": "second", "parent": "run"}, since=3, until=7),
    Row("node", {**_NODE, "id": "a third", "parent": "run"}, since=3, until=7),
    Row("node", {**_NODE, "id": "run", "number": 0}, since=8),
    Row("node", {**_NODE, "id": "a third", "parent": "run", "number": 2}, since=8),
    Row("node", {**_NODE, "id": "second", "parent": "run", "number": 1}, since=8),
    Row("event", {"run": "run", "sequence": 1, "at": 1, "node": "run", "parent": "", "depth": 0, "turn": 0,
                  "body": "{}"}, since=3),
)  # fmt: skip


def written_by(version: int) -> Iterator[Row]:
    return (row for row in ROWS if row.since <= version <= (row.until or len(MIGRATIONS)))


def fill(connection: Connection, version: int) -> None:
    for row in written_by(version):
        marks = ", ".join("?" * len(row.values))
        connection.execute(
            f"INSERT INTO {row.table} ({', '.join(row.values)}) VALUES ({marks})", tuple(row.values.values())
        )


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
async def test_a_database_of_every_former_version_comes_up_to_date_with_its_data(
    database_at: str | Path, version: int
) -> None:
    await make(database_at, version)
    await check(database_at, version)


async def make(at: str | Path, version: int) -> None:
    """Make a database as a server of a version left it."""
    async with await Database.open(at, MIGRATIONS[:version]) as database:
        await database.write(lambda connection: fill(connection, version))


async def check(at: str | Path, version: int) -> None:
    """Open a database that a server of a version left, and find in it what there was."""
    async with await Database.open(at, MIGRATIONS) as database:
        had = {row.table for row in written_by(version)}
        assert await owner(database) == ("acme" if "api_key" in had else None)
        if "hold" in had:
            await check_money(Ledger(database), limited=version >= 7)
        if "run" in had:
            await check_runs(database)
        context = await ContextTable(database).get("acme", "ctx")
        upload = await UploadTable(database).by_request("acme", "once")
        if version >= 5:  # those of before were files of another form, and are not kept
            assert context
            assert upload
            assert (context.name, context.number, upload.context) == ("kept", 1, "ctx")
            assert (context.content.id, context.content.identity, context.labels) == ("ctx", "i", {})
            # The files of one that was deleted have still to go.
            deleted = {"gone": True} if version < 14 else {}
            assert await ContextTable(database).all_contents() == {"ctx": False, **deleted}
        else:
            assert (context, upload) == (None, None)
        if isinstance(at, Path):
            await check_references(database)


async def owner(database: Database) -> str | None:
    """Whose the key is."""
    holder = await Keys(database).holder_of(KEY)
    return None if holder is None else holder.tenant


async def check_money(ledger: Ledger, *, limited: bool) -> None:
    entries = await ledger.entries(Query("acme"))
    assert [(entry.hold.id, entry.number, entry.actual, entry.usage) for entry in entries] == [
        ("early", 1, Amounts(3, 1, 1), Usage(input=6)),
        ("late", 2, Amounts(4, 1, 1), Usage(input=6)),
    ]
    assert (await ledger.recover()).posted == 1
    balance = await ledger.balance("acme")
    assert (balance.limit, balance.posted) == (Limit(nano_usd=100), Amounts(nano_usd=12))
    assert [entry.number for entry in await ledger.entries(Query("acme"))] == [1, 2, 3]
    run = await ledger.statement("acme", "run")
    assert run
    assert (run.parent, run.closed) == ("acme", True)
    windows = [(window.span, window.balance.limit) for window in await ledger.windows("acme")]
    assert windows == ([(Span.DAY, Limit(nano_usd=50))] if limited else [])


async def check_runs(database: Database) -> None:
    journal = Journal(database)
    run = await journal.by_request(Request("acme", "CreateRun", "asked", "whatever it said"))
    assert run
    assert (run.id, run.context, run.budget) == ("run", "ctx", Limit(nano_usd=1))
    assert [node.id for node in await journal.nodes("run")] == ["run", "second", "a third"]
    events = await database.read(lambda db: db.execute("SELECT run, sequence, body FROM event").fetchall())
    assert events == [("run", 1, "{}")]


async def check_references(database: Database) -> None:
    """SQLite lets a foreign key name a table that is not there, as one does after its table was made anew."""

    def tables(db: Connection) -> set[str]:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}

    def targets(db: Connection) -> set[str]:
        return {row[2] for table in tables(db) for row in db.execute(f"PRAGMA foreign_key_list({table})")}

    assert await database.read(targets) <= await database.read(tables)
    assert await database.read(lambda db: db.execute("PRAGMA foreign_key_check").fetchall()) == []


async def test_the_next_script_is_the_next_file(database_at: str | Path, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    version = len(MIGRATIONS)
    (folder / f"{version + 1:04}_toys.sql").write_text(
        "CREATE TABLE toy (number INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL REFERENCES tenant (id)) "
        "STRICT;\nINSERT INTO toy (tenant) SELECT id FROM tenant;"
    )
    async with await Database.open(database_at, MIGRATIONS) as database:
        await database.write(lambda connection: fill(connection, version))
    for _ in range(2):
        async with await Database.open(database_at, tuple(scripts(folder).values())) as database:
            assert await database.read(lambda db: db.execute("SELECT * FROM toy").fetchall()) == [(1, "acme")]
            assert await owner(database) == "acme"
