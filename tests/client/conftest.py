"""A fake server, a client of it, and the `rlm` command pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rlm_client import Client, Retry
from rlm_client.cli import main

from tests.client.fake_server import KEY, FakeServer, serving
from tests.client.real_server import RealServer, running

AT_ONCE = Retry(attempts=4, first_seconds=0.0)

Rlm = Callable[..., Result]


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own server, key and terminal settings out."""
    for name in ("RLM_API_KEY", "RLM_SERVER", "RLM_DATA_DIR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The real server; one for all tests of a module."""
    with running(tmp_path_factory.mktemp("real") / "data") as server:
        yield server


@pytest.fixture
def client(fake: FakeServer) -> Iterator[Client]:
    with Client(fake.target, KEY, retry=AT_ONCE, watch_retry=AT_ONCE) as made:
        yield made


@pytest.fixture
def rlm(fake: FakeServer) -> Rlm:
    """Give a function that runs the command with the arguments it is given."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--server", fake.target, "--key", KEY, *arguments], input=stdin)

    return run


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Give the path of a small text."""
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return str(path)
