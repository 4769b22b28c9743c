"""Documents are a read-only sequence of real strings, read as they are used, from a corpus of any size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.corpora.corpus import BLOCK, MAPPED_FROM, Corpus, CorpusDamaged, Kind, Writer, index_of, part_of
from sandbox.corpora.coverage import Range, fraction, ranges
from sandbox.corpora.text import Form, Text, encode
from sandbox.limits import Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.vm import mappings
from sandbox.vm.image import Loaded
from tests.sandbox.conftest import MakeDocuments, MakeText
from tests.sandbox.corpora.test_texts import SAMPLES
from tests.sandbox.pool.test_hibernation import show
from tests.sandbox.repl import Repl, Repls, on_thread

SMALL = [SAMPLES[form] * times for form in Form for times in (1, 3)]
LARGE = [SAMPLES[form] * 4000 for form in Form]
MIXED = [text for pair in zip(SMALL, LARGE * 2, strict=True) for text in pair] + ["", "x"]


def test_documents_are_strings_of_every_form_and_size(repl: Repl, documents: MakeDocuments) -> None:
    repl.attach("context", documents(MIXED))
    assert repl.show("len(context), [len(d) for d in context]") == repr((len(MIXED), [len(d) for d in MIXED]))
    for number, document in enumerate(MIXED):
        shown = repl.show(f"d = context[{number}]\nprint(type(d), ascii(d[-99:]), hash(d) == hash(''.join(list(d))))")
        assert shown == f"<class 'str'> {document[-99:]!a} True"
        assert repl.show("d.count('o'), d == ''.join(list(d)), {d: 1}[d]") == repr((document.count("o"), True, 1))


def test_what_a_sequence_does_works(repl: Repl, documents: MakeDocuments) -> None:
    repl.attach("context", documents(["one", "two", "three", "four"]))
    for expression in (
        "context[-1]", "list(context[1:3])", "list(context[::-1])", "list(context[::2][1:])", "'two' in context",
        "'five' in context", "context.index('three')", "context.count('one')", "' '.join(context)",
        "list(reversed(context))",
        "[n for n, d in enumerate(context) if 'o' in d]", "sorted(context, key=len)[-1]",
        "dict(zip(context, range(9)))",
        "len(context[1:]), bool(context[4:])", "max(context, key=len)",
    ):  # fmt: skip
        expected = eval(expression, {"context": ["one", "two", "three", "four"]})
        assert repl.show(expression) == repr(expected), expression
    assert repl.show("context, context[1:]") == "(<4 documents>, <3 documents>)"
    assert repl.show("context.names, context[2:].names") == repr(
        ([f"document {n}" for n in range(4)], ["document 2", "document 3"])
    )
    assert repl.show("context['document 1'], context[1:]['document 3']") == "('two', 'four')"
    for wrong, error in (
        ("context[4]", "IndexError"),
        ("context[0] = 'x'", "TypeError"),
        ("context['a']", "KeyError"),
        ("context[1.5]", "TypeError"),
    ):
        turn = repl.run(wrong)
        assert turn.error is not None
        assert turn.error.type == error


def test_documents_and_texts_come_back_wherever_the_session_goes(start: Repls, documents: MakeDocuments) -> None:
    repl = start()
    repl.attach("context", documents(MIXED))
    repl.show("kept = [context[1], context[3]]; table = {context[5]: 5}; part = context[2:6]")
    repl.run("lost = [context[7]]\nimport os; os._exit(0)")
    fork = start.fork(repl)
    for session in (repl, fork):
        assert session.show("[len(d) for d in kept], kept[1] is context[3], table[context[5]]") == repr(
            ([len(MIXED[1]), len(MIXED[3])], True, 5)
        )
        assert session.show("[d == e for d, e in zip(part, context[2:6])]") == repr([True] * 4)
        assert session.show("print(ascii(context[7][-50:]), ascii(kept[0][-9:]))") == (
            f"{MIXED[7][-50:]!a} {MIXED[1][-9:]!a}"
        )


async def test_documents_survive_hibernation_and_the_death_of_a_worker(
    loaded: Loaded, documents: MakeDocuments, tmp_path: Path
) -> None:
    pool = WorkerPool(loaded, sessions=4, spares=0, store=SessionStore(tmp_path, b"k" * 32))
    try:
        session = await pool.create("a", "core", Limits())
        await session.attach("context", documents(MIXED))
        await show(session, "kept = [context[1], context[4]]")
        await session.hibernate()
        assert await show(session, "kept[0] == context[1], len(context[3])") == repr((True, len(MIXED[3])))
        process = await pool.worker("a")
        process.kill()
        assert await show(session, "kept[1] == context[4], kept[0] is context[1]") == "(True, True)"
        assert fraction(session.corpora[0], session.seen[0]) > 0
    finally:
        await pool.close()


# ---- more than fits --------------------------------------------------------------------------------------------------


@contextmanager
def sparse(folder: Path, count: int, size: int) -> Iterator[Corpus]:
    """Make documents of spaces, each with its number at its start and end; the files take no room on the disk."""
    texts, step = [], -(-size // 4096) * 4096 + 4096
    with (folder / "texts").open("xb") as out:
        for number in range(count):
            start = number * step
            os.pwrite(out.fileno(), b"<%09d" % number, start)
            os.pwrite(out.fileno(), b"%09d>" % number, start + size - 10)
            texts.append(Text("", Form.ASCII, size, start))
        os.truncate(out.fileno(), count * step)
    (folder / "index").write_bytes(index_of(texts, Text("", Form.ASCII, 0), Kind.DOCUMENTS))
    yield Corpus(str(folder / "texts"), str(folder / "index"))


def test_a_corpus_may_be_larger_than_the_guests_addresses(repl: Repl, tmp_path: Path) -> None:
    with sparse(tmp_path, 24, 256 << 20) as corpus:
        repl.attach("context", corpus)
        shown = repl.show("[(int(d[1:10]), int(d[-10:-1])) for d in context] == [(n, n) for n in range(24)]")
        assert shown == "True"
        assert repl.session.checkpoint.size < 2 << 30
        assert repl.show("sum(int(context[n][1:10]) for n in (3, 23, 0, 17, 3))") == "46"


def test_what_is_held_stays_and_too_much_of_it_is_a_memory_error(repl: Repl, tmp_path: Path) -> None:
    with sparse(tmp_path, 24, 256 << 20) as corpus:
        repl.attach("context", corpus)
        repl.show("held = [context[n] for n in range(6)]")
        assert repl.show("[int(d[1:10]) for d in context][-1], [int(d[-10:-1]) for d in held]") == repr(
            (23, [*range(6)])
        )
        turn = repl.run("more = [d for d in context]")
        assert turn.error is not None
        assert turn.error.type == "MemoryError"
        assert "4 GiB" in turn.error.message
        assert repl.show("del held\nlen([int(d[1:10]) for d in context])") == "24"


def test_no_more_than_so_many_are_mapped_at_once(repl: Repl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "MAX_MAPPED", 8)
    with sparse(tmp_path, 40, MAPPED_FROM + 1) as corpus:
        repl.attach("context", corpus)
        assert repl.show("sum(int(d[-10:-1]) for d in context)") == str(sum(range(40)))
        turn = repl.run("held = list(context)")
        assert turn.error is not None
        assert "8 large documents are held at once" in turn.error.message
        assert repl.show("sum(int(d[-10:-1]) for d in context)") == str(sum(range(40)))
        assert len(repl.session.checkpoint.layout.mapped) <= 8


def test_a_document_that_is_held_by_the_interpreter_alone_stays(repl: Repl, tmp_path: Path) -> None:
    with sparse(tmp_path, 12, 256 << 20) as corpus:
        repl.attach("context", corpus)
        repl.show("import sys\nname = sys.intern(context[2])\ndel name\nseen = {context[5]}")
        assert repl.show("[int(d[-10:-1]) for d in context][-1]") == "11"
        assert repl.show("sys.intern(context[2])[:10], next(iter(seen))[:10]") == repr(("<000000002", "<000000005"))


def test_the_longest_loop_asks_for_no_more_than_it_may(start: Repls, documents: MakeDocuments) -> None:
    repl = start(door_calls=50)
    repl.attach("context", documents(["x"] * 5000))
    assert repl.show("sum(len(context[n]) for n in range(5000)), sum(map(len, context))") == "(5000, 5000)"


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", Form)
def test_a_part_of_a_text_is_a_text_in_the_same_file(repl: Repl, text: MakeText, form: Form) -> None:
    content = SAMPLES[form] * 3000
    whole = text(content)
    for number, (start, end) in enumerate([(0, 5000), (4, 70_001), (4000, 4096), (776, len(content)), (8, 50)]):
        with part_of(whole, [whole[0].part(start, end)], Kind.TEXT) as part:
            repl.attach(f"part{number}", part)
            own = content[start:end]
            shown = repl.show(f"print(ascii(part{number}[:40]), ascii(part{number}[-40:]), len(part{number}))")
            assert shown == f"{own[:40]!a} {own[-40:]!a} {len(own)}"
            assert repl.show(f"part{number} == ''.join(list(part{number})), part{number}.count('o')") == repr(
                (True, own.count("o"))
            )


def test_a_part_that_no_string_can_begin_at_is_refused(repl: Repl, text: MakeText) -> None:
    whole = text("x" * 1000)
    with part_of(whole, [whole[0].part(1, 1000)], Kind.TEXT) as part:
        turn = on_thread(lambda: repl.session.attach("part", part)).result(60)
    assert turn.error is not None
    assert "no multiple of 4" in turn.error.message


def test_the_host_finds_what_a_long_string_is_part_of(repl: Repl, documents: MakeDocuments) -> None:
    large = [f"{number} {SAMPLES[form]}" * 6000 for number, form in enumerate(Form)]
    repl.attach("context", documents(["small", *large]))
    repl.show("from _documents import located\nheld = list(context)")
    for number in range(1, 5):
        found = {"corpus": 0, "document": number, "start": 0, "end": len(large[number - 1])}
        assert repl.show(f"located(held[{number}])") == repr(found)
        found = {"corpus": 0, "document": number, "start": 7, "end": 100_007}
        part = repl.show(f"part = held[{number}][7:100007]\nlocated(part)")
        assert eval(part)["document"] == number
        assert large[number - 1][eval(part)["start"] : eval(part)["end"]] == large[number - 1][7:100_007]
    assert repl.show("located('x' * 100_000), located('short'), located(held[1] + held[2])") == "(None, None, None)"


def test_finding_a_part_does_not_count_as_looking(repl: Repl, text: MakeText) -> None:
    repl.attach("context", text("".join(f"line {n}\n" for n in range(200_000))))
    repl.show("from _documents import located\npart = context[-80_000:]")
    before = repl.session.seen[0]
    repl.show("located(part), located('y' * 70_000)")
    assert repl.session.seen[0] == before


# ---- what was looked at ----------------------------------------------------------------------------------------------


def looked_at(repl: Repl) -> list[Range]:
    corpus = repl.session.checkpoint.layout.corpora[0]
    return list(ranges(corpus, repl.session.seen[0]))


@pytest.mark.parametrize("form", Form)
def test_coverage_is_what_was_read_to_the_block(start: Repls, text: MakeText, form: Form) -> None:
    content = SAMPLES[form] * 40_000
    corpus = text(content)
    per_block = BLOCK // form.width
    for begin, end in ((0, 1), (per_block - 1, per_block + 1), (300_000, 500_000), (len(content) - 1, len(content))):
        repl = start()
        repl.attach("context", corpus)
        assert looked_at(repl) == []
        repl.show(f"part = context[{begin}:{end}]\nlen(context), hash('x')")
        (found,) = looked_at(repl)
        assert found.start == begin // per_block * per_block
        assert found.end == min(-(-end // per_block) * per_block, len(content))
    repl.show("context.count('o')")
    assert looked_at(repl) == [Range(0, 0, len(content))]
    assert fraction(corpus, repl.session.seen[0]) == 1.0


def test_coverage_grows_over_turns_that_were_undone_as_well(repl: Repl, text: MakeText) -> None:
    corpus = text("x" * 20 * BLOCK)
    repl.attach("context", corpus)
    repl.show("a = context[0]")
    repl.run(f"b = context[{5 * BLOCK}]\nimport os; os._exit(0)")
    repl.show(f"c = context[{9 * BLOCK} : {11 * BLOCK}]")
    assert looked_at(repl) == [Range(0, n * BLOCK, m * BLOCK) for n, m in ((0, 1), (5, 6), (9, 11))]
    assert fraction(corpus, repl.session.seen[0]) == 0.2


def test_coverage_of_documents_is_by_block_for_large_ones_and_whole_for_small_ones(
    repl: Repl, documents: MakeDocuments
) -> None:
    contents = ["small", "x" * 5 * BLOCK, "also small", "y" * 3 * BLOCK]
    corpus = documents(contents)
    repl.attach("context", corpus)
    repl.show("len(context), context.names")
    assert looked_at(repl) == []
    repl.show(f"context[2]; context[1][{2 * BLOCK}]; len(context[3])")
    assert looked_at(repl) == [Range(1, 2 * BLOCK, 3 * BLOCK), Range(2, 0, len("also small"))]
    repl.show("[d.count('y') for d in context]")
    assert looked_at(repl) == [Range(n, 0, len(content)) for n, content in enumerate(contents)]


# ---- damaged ---------------------------------------------------------------------------------------------------------


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "texts").open("wb") as out:
        writer = Writer(out, Kind.DOCUMENTS)
        for content in ("one", "two" * BLOCK):
            form, data = encode(content)
            writer.write(form, len(content), [data[: -form.width]])
        index = writer.finish(["first", "second"])
    path = tmp_path / "index"
    for damaged in (b"", index[:10], index[:-1], index + b"x", b"XXXX" + index[4:], index[:4] + b"\xff" + index[5:]):
        path.write_bytes(damaged)
        with pytest.raises(CorpusDamaged):
            Corpus(str(tmp_path / "texts"), str(path))
    path.write_bytes(index[:-2] + b"\x70" + index[-1:])
    with pytest.raises(CorpusDamaged):
        Corpus(str(tmp_path / "texts"), str(path))[1]
    path.write_bytes(index)
    corpus = Corpus(str(tmp_path / "texts"), str(path))
    assert [text.read(0, 5) for text in corpus] == ["one", "twotw"]
    assert corpus.text(2).read(0, 100) == "first\nsecond"
    with pytest.raises(IndexError):
        corpus[2]
