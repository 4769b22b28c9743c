"""What all tests share: the guest images, loaded once, the databases, and servers in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sandbox.vm.image import Loaded, prepare, standard_specs
from tests.databases import KINDS, postgres_database, postgres_server
from tests.servers import images, plain_environment, server

__all__ = ["images", "plain_environment", "server"]

settings.register_profile("untimed", deadline=None)  # other work on the machine makes any example slow
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, and asked for `-n logical`
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run in this process where only some files are named: others take longer to start than such tests to run.

    Else in one more than there are processors, as a fifth of the time of tests is spent waiting for what they started.
    """
    alone = all(Path(name.partition("::")[0]).is_file() for name in config.args)
    return 0 if alone else len(os.sched_getaffinity(0)) + 1


@pytest.fixture(scope="session")
def loaded() -> Iterator[Loaded]:
    made = prepare(standard_specs({}))
    yield made
    made.program.close()


@pytest.fixture
def unbilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the server's own work unbilled meanwhile: it comes to the tenant's account whenever there is enough."""
    monkeypatch.setattr("rlm_server.ledger.host_bills.LEAST_SECONDS", 3600.0)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A Postgres server of the tests' own."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """An empty Postgres database."""
    with postgres_database(postgres) as url:
        yield url


@pytest.fixture(params=KINDS)
def database_at(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Where a new database of each kind is."""
    return tmp_path / "rlm.sqlite" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
