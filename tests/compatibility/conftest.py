"""One server for the whole suite, and a session on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.vm.image import Loaded
from tests.compatibility.theatre import Theatre
from tests.servers import Server, started
from tests.system.stage import Play

BATCH, CHILDREN = 50, 3
"""Prompts of one batch, and children at work at once, on this server."""


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared(images: Loaded, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, Theatre]]:
    stage = Theatre()
    others = {"second": stage.second}
    data = tmp_path_factory.mktemp("compatibility")
    async with started(images, data, stage, others, model="play", batch=BATCH, children=CHILDREN) as served:
        stage.caller = served.caller
        yield served, stage


@pytest.fixture
def theatre(shared: tuple[Server, Theatre]) -> Theatre:
    """The stage, with nothing on it."""
    _, stage = shared
    stage.begin(Play(""))
    return stage
