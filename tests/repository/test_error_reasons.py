"""An error's reason is a value of the protocol's `ErrorReason`, and no text anywhere else; a page explains each."""

from __future__ import annotations

import ast
from pathlib import Path

import grpc
import pytest
from rlm.v1.errors_pb2 import ErrorReason

from tests.repository.arrows import ROOT, SOURCES
from tests.repository.errors_page import PAGE, PREFIX, Reason, page, read

SERVER, CLIENT = ROOT / "rlm_server", SOURCES["rlm_client"] / "rlm_client"
SENT = {name for name, number in ErrorReason.items() if number}


def trees(folder: Path) -> dict[str, ast.Module]:
    """Return the modules below a folder, parsed."""
    found = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    assert found
    return found


def reasons_named(tree: ast.AST) -> set[str]:
    """Return the reasons that a module names as values of the enum."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith(PREFIX)}


def test_every_reason_is_used_and_every_reason_used_is_of_the_enum() -> None:
    assert set.union(*map(reasons_named, trees(SERVER).values())) == SENT
    assert set.union(*map(reasons_named, trees(CLIENT).values())) <= {
        *SENT,
        ErrorReason.Name(ErrorReason.ERROR_REASON_UNSPECIFIED),
    }


@pytest.mark.parametrize("folder", [SERVER, CLIENT], ids=["server", "client"])
def test_no_reason_is_written_as_a_text(folder: Path) -> None:
    texts = SENT | {name.removeprefix(PREFIX) for name in SENT}
    written = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in trees(folder).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in texts
    ]
    assert not written


def test_the_page_is_made_from_the_comments_as_they_are() -> None:
    assert PAGE.read_text() == page(), "run `make generate`"


REASONS = read()[1]


def test_the_page_has_every_reason() -> None:
    assert {PREFIX + reason.name for reason in REASONS} == SENT


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.name)
def test_a_reason_says_its_code_what_happened_what_comes_with_it_and_what_to_do(reason: Reason) -> None:
    assert reason.code in grpc.StatusCode.__members__
    happened, metadata, to_do = reason.comment.split("\n\n")
    assert happened.endswith(".")
    assert metadata.startswith("Metadata: ")
    assert to_do.startswith("To do: ")
