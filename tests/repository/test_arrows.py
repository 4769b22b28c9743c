"""The packages depend on each other in one direction, and every module is named for what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"sandbox": ROOT, "rlm_server": ROOT, "rlm_client": ROOT / "clients" / "python"}
EDGE = ("rlm_server.api", "rlm_server.server", "rlm_server.cli", "rlm_server.demo")
"""The modules that may speak gRPC."""
GRPC = ("rlm", "grpc", "grpc_health", "grpc_reflection", "grpc_status", "google.protobuf", "google.rpc")
VAGUE_NAMES = {"utils", "helpers", "common", "manager", "base"}


def modules() -> dict[str, Path]:
    """Return every module of the product by its dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, source: str, *, package: bool) -> Iterator[str]:
    """Yield the full name of all that the module `name` imports, at any depth; of `from a import b`, `a.b`."""
    parents = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            origin = [*above, *(node.module or "").split(".")] if node.module else above
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Say whether `name` is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def allowed(importer: str, imported: str) -> bool:
    """Say whether the product's rules let the one module import the other."""
    forbidden: tuple[str, ...] = ()
    if within(importer, ("sandbox",)):
        forbidden = ("rlm_server", "rlm_client", *GRPC)
    elif within(importer, ("rlm_client",)):
        forbidden = ("rlm_server", "sandbox")
    elif importer == "rlm_server.demo":
        pass  # it shows the whole thing: server and client
    elif within(importer, EDGE):
        forbidden = ("rlm_client",)
    elif within(importer, ("rlm_server",)):
        forbidden = ("rlm_client", "rlm_server.api", *GRPC)
    return not within(imported, forbidden)


def test_imports_follow_the_arrows() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        for imported in imports(name, path.read_text(), package=path.name == "__init__.py")
        if not allowed(name, imported)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("sandbox.pool", "import rlm_server.config"),
        ("sandbox.pool", "from rlm.v1 import run_pb2"),
        ("rlm_client.cli", "from sandbox import Pool"),
        ("rlm_server.runs.loop", "import grpc.aio"),
        ("rlm_server.runs.loop", "from .. import api"),
        ("rlm_server.runs.loop", "from ..api.errors import mapped"),
        ("rlm_server.ledger.holds", "def late():\n    from rlm.v1 import types_pb2"),
        ("rlm_server.api.runs", "import rlm_client"),
    ],
)
def test_an_import_against_the_arrows_is_seen(importer: str, line: str) -> None:
    assert not all(allowed(importer, imported) for imported in imports(importer, line, package=False))


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("sandbox.pool", "import rlm_serverless, asyncio"),
        ("rlm_server.api.runs", "from rlm.v1 import run_pb2_grpc"),
        ("rlm_server.runs.loop", "from sandbox import Pool\nfrom . import prompt"),
        ("rlm_server.server", "from rlm_server.api import auth\nimport grpc"),
    ],
)
def test_an_import_along_the_arrows_is_not(importer: str, line: str) -> None:
    assert all(allowed(importer, imported) for imported in imports(importer, line, package=False))


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert modules()
    assert not [name for name in modules() if VAGUE_NAMES & set(name.split("."))]
