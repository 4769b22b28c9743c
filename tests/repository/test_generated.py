"""The protobuf code that is committed is what the .proto files make."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def generated(folder: Path) -> dict[str, str]:
    """Return the generated files below a folder, by their path in it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*_pb2*.py*") if path.is_file()}


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "generate", tmp_path], check=True)
    fresh, kept = generated(tmp_path), {k: v for k, v in generated(ROOT / "proto").items() if "__pycache__" not in k}
    assert fresh
    stale = sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))
    assert not stale, f"run `make generate`: {stale}"
