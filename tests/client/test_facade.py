"""What the package offers."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import rlm_client


def test_every_name_offered_exists_and_is_listed_in_order() -> None:
    assert rlm_client.__all__ == sorted(rlm_client.__all__)
    assert all(hasattr(rlm_client, name) for name in rlm_client.__all__)


def test_it_depends_on_the_protocol_grpc_rich_and_click_alone() -> None:
    allowed = {"rlm", "rlm_client", "grpc", "grpc_status", "google", "rich", "click"} | sys.stdlib_module_names
    for path in Path(rlm_client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= allowed, path.name
