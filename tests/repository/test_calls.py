"""Every call of the protocol is answered by its service's servicer, and the client makes it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.repository.arrows import ROOT, SOURCES

PROTOCOL = sorted((ROOT / "proto" / "rlm" / "v1").glob("*.proto"))
API, CLIENT = ROOT / "rlm_server" / "api", SOURCES["rlm_client"] / "rlm_client"

CALLS = [
    (service.name, method.name)
    for path in PROTOCOL
    for service in importlib.import_module(f"rlm.v1.{path.stem}_pb2").DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def nodes(folder: Path) -> Iterable[ast.AST]:
    """Return all there is in the modules below a folder, parsed."""
    return (node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))


ANSWERED = {
    (base.attr.removesuffix("Servicer"), method.name)
    for node in nodes(API)
    if isinstance(node, ast.ClassDef)
    for base in node.bases
    if isinstance(base, ast.Attribute)
    for method in node.body
    if isinstance(method, ast.AsyncFunctionDef)
}
MADE = {node.attr for node in nodes(CLIENT) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(("service", "method"), CALLS)
def test_a_call_is_answered_and_the_client_makes_it(service: str, method: str) -> None:
    assert (service, method) in ANSWERED, f"no servicer in {API.relative_to(ROOT)} has it"
    assert method in MADE, f"nothing in {CLIENT.relative_to(ROOT)} makes it"
