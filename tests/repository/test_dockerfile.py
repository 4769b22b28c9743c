"""No engine builds the container here, so what can be checked without one is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def copied() -> list[str]:
    """Return the paths that are copied from the repository."""
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    return [source for line in lines if "--from=" not in line for source in line.split()[:-1] if source[:2] != "--"]


def test_every_path_it_copies_exists() -> None:
    assert copied()
    assert not [path for path in copied() if not (ROOT / path).exists()]


def test_every_path_it_copies_is_let_through_to_the_builder() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert {path.split("/")[0] for path in copied()} == let_through


def test_it_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] not in {"root", "0"}
