from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from sandbox.image import Loaded
from sandbox.memory import sealed
from sandbox.text import Text, encode
from tests.sandbox.repl import Repl, Repls


@pytest.fixture
def start(loaded: Loaded) -> Iterator[Repls]:
    repls = Repls(loaded)
    yield repls
    repls.close()


@pytest.fixture
def repl(start: Repls) -> Repl:
    return start()


MakeText = Callable[[str], Text]


@pytest.fixture
def text() -> Iterator[MakeText]:
    made: list[int] = []

    def make(content: str) -> Text:
        form, data = encode(content)
        made.append(sealed(data, "text"))
        return Text(made[-1], form, len(content))

    yield make
    for fd in made:
        os.close(fd)
