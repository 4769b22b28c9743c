"""The server does not start where others can read what it keeps, and what it makes is its own alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_server.config.private_files import SESSION_SECRET, check_private, session_secret
from rlm_server.config.settings import ConfigError
from tests.servers import Served
from tests.system.context_calls import ContextCalls, of_text
from tests.system.stage import Play


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o755, 0o770, 0o777])
def test_a_folder_that_others_may_use_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"{tmp_path} \(mode {mode:o}\): run `chmod -R go= {tmp_path}`"):
        check_private(tmp_path)


@pytest.mark.parametrize("name", ["development-key", "rlm.sqlite", "rlm.sqlite-wal", "contexts", "anything"])
def test_a_file_or_folder_in_it_that_others_may_use_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    check_private(folder)
    path = folder / name
    path.mkdir() if name == "contexts" else path.touch()
    for mode in (0o640, 0o604, 0o620, 0o601):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{path} "):
            check_private(folder)
    path.chmod(0o700)
    check_private(folder)


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    check_private(folder)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ConfigError, match=f"{folder} belongs to user {user}, .* `chown -R {user + 1} {folder}"):
        check_private(folder)


async def test_everything_that_a_server_keeps_is_its_users_alone_and_taken_at_the_next_start(server: Served) -> None:
    before = os.umask(0)  # the worst there is
    try:
        for text in ("one", "another"):
            async with server(Play("")) as served:
                await ContextCalls(served.caller).send(of_text(text))
                await served.caller.turn(await served.caller.open_session(), "1")
                kept = [served.data_dir, *served.data_dir.rglob("*")]
    finally:
        os.umask(before)
    assert {"development-key", "rlm.sqlite", "texts"} <= {path.name for path in kept}
    assert [path for path in kept if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []


HARD = """
import ctypes, os, resource
from rlm_server.commands.serve import keep_to_itself
keep_to_itself()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), oct(os.umask(0)))
"""


def test_a_servers_memory_is_not_dumped_and_its_files_are_its_own() -> None:
    said = subprocess.run([sys.executable, "-c", HARD], check=True, capture_output=True, text=True).stdout
    assert said == "(0, 0) 0 0o77\n"


def test_the_secret_of_sessions_is_made_once_and_is_the_servers_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret = session_secret(tmp_path)
    finally:
        os.umask(before)
    path = tmp_path / SESSION_SECRET
    assert (len(secret), stat.S_IMODE(path.stat().st_mode)) == (32, 0o600)
    assert secret.hex() in path.read_text()
    assert session_secret(tmp_path) == secret
    assert session_secret(Path(shutil.copytree(tmp_path, tmp_path / "copy"))) == secret
    (tmp_path / "other").mkdir()
    assert session_secret(tmp_path / "other") != secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    session_secret(tmp_path)
    (tmp_path / SESSION_SECRET).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{SESSION_SECRET} \(mode {mode:o}\): run `chmod go="):
        session_secret(tmp_path)


@pytest.mark.parametrize("text", ["", "no digits", "ab" * 31, "ab" * 33, "\udcff"])
def test_a_secret_that_is_not_what_was_made_is_refused_and_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / SESSION_SECRET
    path.write_bytes(text.encode(errors="surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="put it back from a backup"):
        session_secret(tmp_path)
    assert path.read_bytes() == text.encode(errors="surrogateescape")
