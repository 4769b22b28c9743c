"""What all tests share: the guest images, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.image import Loaded, prepare, standard_specs


@pytest.fixture(scope="session")
def loaded() -> Iterator[Loaded]:
    made = prepare(standard_specs({}))
    yield made
    made.program.close()
