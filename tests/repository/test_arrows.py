"""The rooms depend on each other in one direction, as one table says, and every module is named for what it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.repository.arrows import ALLOWED, ROOT, allowed, arrows, circle, imports, modules, room_of

VAGUE_NAMES = {"utils", "helpers", "common", "manager", "base"}


def test_every_module_is_in_a_room() -> None:
    homeless = [name for name in modules() if room_of(name) is None]
    assert homeless == ["sandbox", "rlm_server"], "only the packages themselves are in none"


def test_imports_follow_the_table() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        for imported in imports(name, path.read_text(), package=path.name == "__init__.py")
        if not allowed(name, imported)
    ]
    assert not wrong


def test_the_table_has_no_arrow_that_is_not_used() -> None:
    found = arrows()
    shared = ("sandbox.door", "sandbox.turn", "sandbox.limits", "sandbox.cancellation")
    unused = [
        f"{room} → {target}"
        for room, targets in ALLOWED.items()
        for target in targets
        if target not in found[room] and target not in shared
    ]
    assert not unused


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert circle(arrows()) == []
    assert circle({room: {target: set() for target in targets} for room, targets in ALLOWED.items()}) == []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b": {"x"}}, "b": {"c": {"y"}}, "c": {"b": {"z"}}}) == ["b", "c", "b"]


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("sandbox.pool.pool", "import rlm_server.config.settings"),
        ("sandbox.pool.pool", "from rlm.v1 import run_pb2"),
        ("sandbox.pool.pool", "from sandbox.worker import jail"),
        ("sandbox.worker.worker", "from sandbox.pool.process import WorkerLost"),
        ("sandbox.vm.instance", "from sandbox.wire.frames import Frame"),
        ("sandbox.vm.instance", "from sandbox.pool import pool"),
        ("sandbox.corpora.text", "from sandbox.vm import clocks"),
        ("rlm_client.cli", "from sandbox import pool"),
        ("rlm_server.runs.loop", "import grpc.aio"),
        ("rlm_server.runs.loop", "from .. import api"),
        ("rlm_server.runs.loop", "from ..api.errors import mapped"),
        ("rlm_server.runs.loop", "from rlm_server.sessions.sessions import Sessions"),
        ("rlm_server.repl.events", "from rlm_server.runs.events import Event"),
        ("rlm_server.broker.routes", "from rlm_server.config.settings import Settings"),
        ("rlm_server.ledger.holds", "def late():\n    from rlm.v1 import types_pb2"),
        ("rlm_server.api.runs", "import rlm_client"),
        ("rlm_server.somewhere.new", "from rlm_server.ledger import Ledger"),
    ],
)
def test_an_import_against_the_arrows_is_seen(importer: str, line: str) -> None:
    assert not all(allowed(importer, imported) for imported in imports(importer, line, package=False))


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("sandbox.pool.pool", "import rlm_serverless, asyncio"),
        ("sandbox.pool.pool", "from sandbox.wire.frames import Frame"),
        ("rlm_server.api.runs", "from rlm.v1 import run_pb2_grpc"),
        ("rlm_server.runs.loop", "from sandbox.pool.pool import Pool\nfrom . import prompt"),
        ("rlm_server.server", "from rlm_server.api import auth\nimport grpc"),
        ("rlm_server.commands.demo", "import rlm_client"),
    ],
)
def test_an_import_along_the_arrows_is_not(importer: str, line: str) -> None:
    assert all(allowed(importer, imported) for imported in imports(importer, line, package=False))


def test_the_arrows_can_be_printed() -> None:
    program = [sys.executable, "-m", "tests.repository.arrows"]
    printed = subprocess.run(program, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "priority, process, records, sealing, session_file, snapshots, worker_session" in printed
    assert "in a circle: none" in printed
    assert printed.endswith("against the table: none\n")


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert modules()
    assert not [name for name in modules() if VAGUE_NAMES & set(name.split("."))]
