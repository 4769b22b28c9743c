from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.vm.image import Loaded
from tests.sandbox.repl import Repl, Repls


@pytest.fixture
def start(loaded: Loaded) -> Iterator[Repls]:
    repls = Repls(loaded)
    yield repls
    repls.close()


@pytest.fixture
def repl(start: Repls) -> Repl:
    return start()


MakeText = Callable[[str], Corpus]
MakeDocuments = Callable[[list[str]], Corpus]


@pytest.fixture
def text() -> Iterator[MakeText]:
    with ExitStack() as made:
        yield lambda content: made.enter_context(in_memory([content], Kind.TEXT))


@pytest.fixture
def documents() -> Iterator[MakeDocuments]:
    with ExitStack() as made:

        def make(contents: list[str]) -> Corpus:
            names = [f"document {number}" for number in range(len(contents))]
            return made.enter_context(in_memory(contents, Kind.DOCUMENTS, names))

        yield make
