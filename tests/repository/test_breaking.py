"""The protocol that clients rely on is guarded: what takes something from it is refused, what adds to it is not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def breaking(tmp_path: Path, before: str, after: str) -> subprocess.CompletedProcess[str]:
    """Compare a copy of proto/, in which some words of the sessions' file are others, with the baseline."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*_pb2*", "__pycache__"))
    file = tmp_path / "proto/rlm/v1/session.proto"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    command = [str(ROOT / ".venv/bin/buf"), "breaking", "proto", "--against", "proto/baseline.binpb"]
    return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)


def test_the_protocol_is_what_clients_rely_on() -> None:
    subprocess.run([ROOT / "scripts/breaking"], check=True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("string code = 3", "string source = 3"),
        ("string code = 3", "bytes code = 3"),
        ("string code = 3", "string code = 33"),
        ("TURN_STATUS_OK = 1", "TURN_STATUS_FINE = 1"),
        ("rpc GetSession(", "rpc DescribeSession("),
    ],
)
def test_what_breaks_clients_is_refused(tmp_path: Path, before: str, after: str) -> None:
    assert breaking(tmp_path, before, after).returncode != 0


def test_what_is_added_breaks_nobody(tmp_path: Path) -> None:
    added = "message ExecuteRequest {\n  // Another.\n  string another = 90;"
    ended = breaking(tmp_path, "message ExecuteRequest {", added)
    assert ended.returncode == 0, ended.stdout + ended.stderr
