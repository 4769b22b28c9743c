"""The page of all settings is what the settings are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_server.config import page
from rlm_server.config.described import all_settings, docs, sections
from rlm_server.config.settings import Settings
from rlm_server.config.sources import OTHER_VARIABLES, unknown_variables
from sandbox.limits import Limits

ROOT = Path(__file__).parents[2]
NOT_TEXT = {".png", ".gz", ".json", ".lock", ".pyc"}


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page.text(), "run `make docs`"


def test_the_page_is_written_where_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlm_server.config.page"]
    subprocess.run([*command, tmp_path / "page.md"], cwd=ROOT, check=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page.text()
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (refused.returncode, "FILE" in refused.stderr) == (1, True)


def test_every_setting_is_explained_and_every_number_has_bounds_and_a_unit() -> None:
    settings = all_settings(Settings)
    assert all(doc.endswith(".") for section in sections(Settings) for doc in docs(section).values())
    for setting in settings:
        is_number = setting.kind in ("integer", "number")
        assert (bool(setting.bounds), bool(setting.unit)) == (is_number, is_number), setting.path
    assert len({setting.variable for setting in settings}) == len(settings)


def test_the_pages_examples_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rlm.toml").write_text(page.EXAMPLE)
    monkeypatch.setenv("RLM_CONFIG", str(tmp_path / "rlm.toml"))
    settings = Settings.load()
    assert (settings.listen, settings.run_limits().sandbox.turn_seconds) == ("0.0.0.0:7400", 30)
    assert settings.terms().limits("acme", Limits).memory_bytes == 256 << 20
    monkeypatch.delenv("RLM_CONFIG")
    (line,) = re.findall("^RLM_.*rlm-server serve$", page.text(), re.M)
    for name, value in (word.split("=", 1) for word in shlex.split(line) if word.startswith("RLM_")):
        monkeypatch.setenv(name, value)
    assert (Settings.load().run_limits().max_turns, Settings.load().tenants["acme"].weight) == (20, 2)


def test_every_variable_that_the_repository_speaks_of_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    spoken_of = set(OTHER_VARIABLES)
    for name in files.split("\0"):
        path = ROOT / name
        if path.is_file() and path.suffix not in NOT_TEXT and not name.startswith("tests/config/"):
            spoken_of |= set(
                re.findall(r"\bRLM_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8", errors="replace"))
            )
    assert {"RLM_CONFIG", "RLM_MODELS", "RLM_TEST_KILLS"} < spoken_of
    for name in [name for name in os.environ if name.startswith("RLM_")]:
        monkeypatch.delenv(name)
    for name in spoken_of:
        monkeypatch.setenv(name, "")
    assert unknown_variables(Settings) == []
