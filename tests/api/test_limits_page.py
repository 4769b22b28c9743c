"""The page of all limits is what the code declares, and every fixed limit of the API is on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_server.api import limits_page
from rlm_server.api.limits_page import DECLARED, FIXED, Fixed, doc
from sandbox.limits import declared

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "limits.md").read_text(encoding="utf-8") == limits_page.text(), "run `make docs`"


def test_the_page_is_written_where_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlm_server.api.limits_page"]
    subprocess.run([*command, tmp_path / "page.md"], cwd=ROOT, check=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == limits_page.text()
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (refused.returncode, "FILE" in refused.stderr) == (1, True)


@pytest.mark.parametrize("one", FIXED, ids=lambda one: f"{one.module}.{one.name}")
def test_a_fixed_limit_is_a_number_that_is_explained(one: Fixed) -> None:
    assert doc(one).endswith(".")
    assert f"| `{one.name}` |" in limits_page.text()


def test_every_declared_limit_is_on_the_page_and_every_reason_is_of_one() -> None:
    names = {name for _, limits in DECLARED for name in declared(limits)}
    assert all(f"| `{name}` |" in limits_page.text() for name in names)
    assert limits_page.REFUSED.keys() <= names


@pytest.mark.parametrize("room", ["api", "sessions", "tenants"])
def test_every_fixed_limit_of_what_callers_send_is_on_the_page(room: str) -> None:
    listed = {(one.module, one.name) for one in FIXED}
    for path in (ROOT / "rlm_server" / room).glob("*.py"):
        for name in re.findall(r"^(MAX_\w+) = ", path.read_text(), re.M):
            assert (f"rlm_server.{room}.{path.stem}", name) in listed
