"""The rooms of the product and the arrows between them: which room's modules import which other's.

`python -m tests.repository.arrows` prints them as they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = {"sandbox": ROOT, "rlm_server": ROOT, "rlm_client": ROOT / "clients" / "python"}

_SANDBOX = ("sandbox.door", "sandbox.turn", "sandbox.limits", "sandbox.cancellation")
"""What both sides of the sandbox's wall speak in."""

ALLOWED: Mapping[str, tuple[str, ...]] = {
    # ---- the sandbox: alone, and in two halves that meet in `wire` only ------------------------------------------
    "sandbox.bounded_json": (),
    "sandbox.door": ("sandbox.bounded_json",),
    "sandbox.turn": (),
    "sandbox.limits": (),
    "sandbox.inputs": (),
    "sandbox.cancellation": (),
    "sandbox.thread_time": (),
    "sandbox.guest": (),
    "sandbox.memory": (),
    "sandbox.corpora": ("sandbox.memory",),
    "sandbox.vm": (*_SANDBOX, "sandbox.inputs", "sandbox.memory", "sandbox.corpora"),
    "sandbox.wire": (
        *_SANDBOX,
        "sandbox.inputs",
        "sandbox.bounded_json",
        "sandbox.memory",
        "sandbox.corpora",
        "sandbox.vm",
    ),
    "sandbox.worker": (*_SANDBOX, "sandbox.inputs", "sandbox.memory", "sandbox.corpora", "sandbox.vm", "sandbox.wire"),
    "sandbox.pool": (
        *_SANDBOX,
        "sandbox.inputs",
        "sandbox.thread_time",
        "sandbox.memory",
        "sandbox.corpora",
        "sandbox.vm",
        "sandbox.wire",
    ),
    # ---- the server, from what is kept up to what is said ---------------------------------------------------------
    "rlm_server.clock": (),
    "rlm_server.tracing": (),
    "rlm_server.database": ("rlm_server.shares",),
    "rlm_server.shares": ("sandbox.cancellation", "sandbox.limits", "sandbox.thread_time"),
    "rlm_server.ledger": ("rlm_server.clock", "rlm_server.database", "rlm_server.shares", "sandbox.cancellation"),
    "rlm_server.tenants": (
        "rlm_server.clock",
        "rlm_server.database",
        "rlm_server.ledger",
        "sandbox.cancellation",
        "sandbox.limits",
    ),
    "rlm_server.webhooks": (
        "rlm_server.clock",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.shares",
        "sandbox.cancellation",
    ),
    "rlm_server.contexts": (
        "rlm_server.shares",
        "rlm_server.clock",
        "rlm_server.database",
        "rlm_server.shares",
        "sandbox.cancellation",
        "sandbox.corpora",
        "sandbox.memory",
    ),
    "rlm_server.broker": (
        "rlm_server.tracing",
        "rlm_server.shares",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.tenants",
        "sandbox.cancellation",
        "sandbox.limits",
    ),
    "rlm_server.schemas": ("rlm_server.contexts", "sandbox.bounded_json"),
    "rlm_server.repl": (
        "rlm_server.shares",
        "rlm_server.broker",
        "rlm_server.contexts",
        "rlm_server.ledger",
        "rlm_server.shares",
        *_SANDBOX,
        "sandbox.corpora",
        "sandbox.pool",
    ),
    "rlm_server.tools": (
        "rlm_server.broker",
        "rlm_server.clock",
        "rlm_server.ledger",
        "rlm_server.repl",
        "rlm_server.schemas",
        "rlm_server.shares",
        "rlm_server.webhooks",
        "sandbox.cancellation",
        "sandbox.door",
    ),
    "rlm_server.runs": (
        "rlm_server.tracing",
        "rlm_server.shares",
        "rlm_server.broker",
        "rlm_server.clock",
        "rlm_server.contexts",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.repl",
        "rlm_server.schemas",
        "rlm_server.shares",
        "rlm_server.tools",
        *_SANDBOX,
        "sandbox.corpora",
        "sandbox.pool",
        "sandbox.inputs",
    ),
    "rlm_server.sessions": (
        "rlm_server.tracing",
        "rlm_server.shares",
        "rlm_server.broker",
        "rlm_server.clock",
        "rlm_server.contexts",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.repl",
        "rlm_server.shares",
        *_SANDBOX,
        "sandbox.corpora",
        "sandbox.pool",
    ),
    "rlm_server.config": (
        "rlm_server.shares",
        "rlm_server.broker",
        "rlm_server.ledger",
        "rlm_server.repl",
        "rlm_server.tenants",
        "rlm_server.webhooks",
        "sandbox.limits",
    ),
    "rlm_server.metrics": (
        "rlm_server.api",
        "rlm_server.broker",
        "rlm_server.ledger",
        "rlm_server.runs",
        "sandbox.pool",
    ),
    "rlm_server.api": (
        "rlm_server.tracing",
        "rlm_server.shares",
        "rlm_server.broker",
        "rlm_server.clock",
        "rlm_server.config",
        "rlm_server.contexts",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.repl",
        "rlm_server.runs",
        "rlm_server.schemas",
        "rlm_server.sessions",
        "rlm_server.shares",
        "rlm_server.tenants",
        "rlm_server.tools",
        "rlm_server.webhooks",
        *_SANDBOX,
        "sandbox.corpora",
        "sandbox.pool",
    ),
    "rlm_server.server": (
        "sandbox.cancellation",
        "rlm_server.shares",
        "rlm_server.api",
        "rlm_server.broker",
        "rlm_server.config",
        "rlm_server.contexts",
        "rlm_server.database",
        "rlm_server.ledger",
        "rlm_server.metrics",
        "rlm_server.repl",
        "rlm_server.runs",
        "rlm_server.sessions",
        "rlm_server.shares",
        "rlm_server.tenants",
        "rlm_server.tools",
        "rlm_server.webhooks",
        "sandbox.limits",
        "sandbox.pool",
        "sandbox.vm",
    ),
    "rlm_server.backup": ("rlm_server.config", "rlm_server.database"),
    "rlm_server.commands": (
        "rlm_server.tracing",
        "rlm_server.api",
        "rlm_server.backup",
        "rlm_server.broker",
        "rlm_server.config",
        "rlm_server.database",
        "rlm_server.clock",
        "rlm_server.ledger",
        "rlm_server.runs",
        "rlm_server.server",
        "rlm_server.shares",
        "rlm_server.tenants",
        "sandbox.memory",
        "sandbox.pool",
        "sandbox.vm",
    ),
    # ---- the client, which knows the protocol alone ---------------------------------------------------------------
    "rlm_client": (),
}
"""Every room, and the rooms whose modules its own may import."""

SPEAK_GRPC = ("rlm_server.api", "rlm_server.server", "rlm_server.commands", "rlm_client")
"""The rooms that may know the protocol and gRPC."""
GRPC = ("rlm", "grpc", "grpc_health", "grpc_reflection", "grpc_status", "google.protobuf", "google.rpc")

EXCEPTIONS = {("rlm_server.commands.demo", "rlm_client")}
"""Modules that may import what their room may not: the demonstration shows the server and the client."""


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


def room_of(name: str) -> str | None:
    """Return the room a module, or what is imported from one, is in; None for what is not the product's."""
    return next((room for room in ALLOWED if within(name, (room,))), None)


def allowed(importer: str, imported: str) -> bool:
    """Say whether the table lets the one module import the other."""
    room, target = room_of(importer), room_of(imported)
    if within(imported, GRPC):
        return room in SPEAK_GRPC
    if target is None:  # what is no room may still be a package of ours: nobody imports one as a whole
        return not within(imported, tuple(SOURCES)) or imported in SOURCES
    if any(importer == module and within(imported, (package,)) for module, package in EXCEPTIONS):
        return True
    return room is not None and (target == room or target in ALLOWED[room])


def arrows() -> dict[str, dict[str, set[str]]]:
    """Return the arrows that there are: of each room the rooms it imports, and of these the modules that do it."""
    found: dict[str, dict[str, set[str]]] = {room: {} for room in ALLOWED}
    for name, path in modules().items():
        room = room_of(name)
        for imported in imports(name, path.read_text(), package=path.name == "__init__.py"):
            target = room_of(imported)
            if room is not None and target is not None and target != room:
                found[room].setdefault(target, set()).add(name)
    return found


def circle(found: Mapping[str, Mapping[str, set[str]]]) -> list[str]:
    """Return rooms that import each other in a circle; nothing where none do."""
    finished: set[str] = set()

    def from_here(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in finished:
            return []
        for target in found.get(room, ()):
            if around := from_here(target, [*path, room]):
                return around
        finished.add(room)
        return []

    return next((around for room in found if (around := from_here(room, []))), [])


def main() -> None:
    """Print every room with its modules, its arrows, and what is against the table."""
    found, every = arrows(), modules()
    for room, targets in found.items():
        inside = [name.removeprefix(f"{room}.") for name in every if room_of(name) == room and name != room]
        print(f"{room}: {', '.join(inside)}" if inside else room)
        for target in sorted(targets):
            print(f"  → {target}")
    number = sum(map(len, found.values()))
    against = [
        f"{name} imports {imported}"
        for name, path in every.items()
        for imported in imports(name, path.read_text(), package=path.name == "__init__.py")
        if not allowed(name, imported)
    ]
    print(f"{len(found)} rooms, {number} arrows; in a circle: {' → '.join(circle(found)) or 'none'}")
    print(f"against the table: {'; '.join(against) or 'none'}")


if __name__ == "__main__":
    main()
