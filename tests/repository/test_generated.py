"""The protobuf code that is committed is what the .proto files make."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def generated(folder: Path) -> dict[str, str]:
    """Return the generated files below a folder, by their path in it."""
    paths = [path for path in folder.rglob("*_pb2*") if path.suffix in {".py", ".pyi"}]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "generate", tmp_path], check=True)
    fresh, kept = generated(tmp_path), generated(ROOT / "proto")
    assert fresh
    stale = sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))
    assert not stale, f"run `make generate`: {stale}"
