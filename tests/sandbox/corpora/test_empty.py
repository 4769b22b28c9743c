"""What is empty is there like anything else: no documents, and an empty text, are not the lack of a corpus."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.corpora.corpus import Corpus, Kind, in_memory, part_of, selection_of
from sandbox.corpora.coverage import fraction, ranges
from sandbox.door import HostCall, Json
from sandbox.pool.pool import WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_pool import ignore
from tests.sandbox.pool.test_workers import ASK, LIMITS, pid_of, process_of, show
from tests.sandbox.repl import Repl, Repls

DOCUMENTS = "(len(context), [*context], context.names, [*context[0:0]], [*context[::-1]], context[5:9].names)"
TEXT = "(context, len(context), context == '' == str(), hash(context), {'': 1}[context], context + 'x', [*context])"
NOTHING = repr((0, [], [], [], [], []))
EMPTY_TEXT = repr(("", 0, True, 0, 1, "x", []))

KINDS = {
    "no documents": (DOCUMENTS, NOTHING),
    "no documents of a corpus": (DOCUMENTS, NOTHING),
    "empty documents": (DOCUMENTS, repr((2, ["", ""], ["", ""], [], ["", ""], []))),
    "an empty text": (TEXT, EMPTY_TEXT),
    "an empty part of a text": (TEXT, EMPTY_TEXT),
    "the empty part at the end of a text": (TEXT, EMPTY_TEXT),
}
"""Of each kind of corpus without a character: what is looked at in it, and what that shows."""


@pytest.fixture
def empty() -> Iterator[dict[str, Corpus]]:
    with ExitStack() as made:

        def of(texts: list[str], kind: Kind) -> Corpus:
            return made.enter_context(in_memory(texts, kind))

        def part(start: int) -> Corpus:
            return made.enter_context(part_of(text, [text[0].part(start, start)], Kind.TEXT))

        some, text = of(["a", "b"], Kind.DOCUMENTS), of(["abcd" * 50_000], Kind.TEXT)
        yield {
            "no documents": of([], Kind.DOCUMENTS),
            "no documents of a corpus": made.enter_context(part_of(some, [], Kind.DOCUMENTS)),
            "empty documents": of(["", ""], Kind.DOCUMENTS),
            "an empty text": of([""], Kind.TEXT),
            "an empty part of a text": part(8),
            "the empty part at the end of a text": part(200_000),
        }


@pytest.fixture
async def pool(loaded: Loaded, tmp_path: Path) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4, spares=0, store=SessionStore(tmp_path, os.urandom(32)))
    yield made
    await asyncio.wait_for(made.close(), 30)


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_attached_and_the_turns_of_others_go_on(
    pool: WorkerPool, empty: dict[str, Corpus], kind: str
) -> None:
    neighbour, session = [await pool.create("a", "core", LIMITS) for _ in range(2)]
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def answer(_: HostCall) -> Json:
        under_way.set()
        await go_on.wait()
        return None

    turn = asyncio.create_task(neighbour.execute(f"{ASK}print('done')", answer, ignore))
    await under_way.wait()
    worker = process_of(session)
    await session.attach("context", empty[kind])
    looked, shown = KINDS[kind]
    assert await show(session, looked) == shown
    go_on.set()
    assert (await turn).stdout == "done\n"
    assert (process_of(session), process_of(neighbour), worker.alive) == (worker, worker, True)


@pytest.mark.parametrize("kind", KINDS)
async def test_it_stays_with_a_session_that_moves_and_hibernates(
    pool: WorkerPool, empty: dict[str, Corpus], kind: str
) -> None:
    session = await pool.create("a", "core", LIMITS)
    await session.attach("context", empty[kind])
    await session.attach("other", empty["no documents"])
    looked, shown = KINDS[kind]

    async def check(session: WorkerSession) -> None:
        assert await show(session, looked) == shown
        assert await show(session, "[*other]") == "[]"
        assert list(session.corpora) == [empty[kind], empty["no documents"]]

    await check(session)
    first = pid_of(session)
    process_of(session).kill()
    await check(session)
    assert pid_of(session) != first
    await session.hibernate()
    assert session.checkpoint is None
    await check(session)


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_with_a_fork_and_a_turn_that_was_undone(
    start: Repls, repl: Repl, empty: dict[str, Corpus], kind: str
) -> None:
    repl.attach("context", empty[kind])
    looked, shown = KINDS[kind]
    assert repl.run("context = 1\nimport os; os._exit(0)").status is Status.ROLLED_BACK
    for one in (repl, start.fork(repl)):
        assert one.show(looked) == shown


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_has_been_looked_at(repl: Repl, empty: dict[str, Corpus], kind: str) -> None:
    corpus = empty[kind]
    for blocks in (0, (1 << corpus.blocks) - 1):
        assert fraction(corpus, blocks) == 1.0
        assert list(ranges(corpus, blocks)) == []
    repl.attach("context", corpus)
    repl.show(KINDS[kind][0])
    assert fraction(corpus, repl.session.seen[0]) == 1.0


def test_whether_there_is_a_corpus_cannot_be_asked_by_its_truth(empty: dict[str, Corpus]) -> None:
    for corpus in empty.values():
        with pytest.raises(TypeError, match="is not None"):
            bool(corpus)


def test_documents_without_names_have_empty_ones(repl: Repl, empty: dict[str, Corpus]) -> None:
    with in_memory(["a", "b", "c"], Kind.DOCUMENTS, ["1", "2", "3"]) as corpus:
        repl.attach("all", corpus)
        with part_of(corpus, [corpus[0], corpus[2]], Kind.DOCUMENTS) as part:
            repl.attach("some", part)
            assert repl.show("all.names, some.names, [*some], some[1:].names") == repr(
                (["1", "2", "3"], ["", ""], ["a", "c"], [""])
            )


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["x" * 70_000, "é" * 66_000])),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_selection_of_whole_documents_is_the_same_as_parts_of_them(texts: list[str], data: st.DataObject) -> None:
    numbers = data.draw(
        st.sampled_from([range(len(texts)), range(0), range(0, len(texts), 3), range(len(texts))[::-1]])
    )
    with in_memory(texts, Kind.DOCUMENTS) as corpus:
        assert corpus.selection(numbers) == corpus.part([corpus[number] for number in numbers], Kind.DOCUMENTS)
        with selection_of(corpus, numbers) as selected:
            assert [text.read(0, text.characters) for text in selected] == [texts[number] for number in numbers]
