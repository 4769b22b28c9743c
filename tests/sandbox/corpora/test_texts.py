"""A text that is mapped into a session is a real `str` there, in every form, shared and unchangeable."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.corpora.corpus import Kind, in_memory, part_of
from sandbox.corpora.text import Form, Text, encode, header
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from tests.sandbox.conftest import MakeText
from tests.sandbox.repl import Repl, Repls, memory_of

SAMPLES = {
    Form.ASCII: "The quick brown fox\njumps over the lazy dog. ",
    Form.LATIN1: "Schöne Grüße aus Köln\nwith some plain words. ",
    Form.UCS2: "Съешь ещё этих мягких\nфранцузских булок 中文. ",
    Form.UCS4: "A smile \U0001f600 and a word\nand \U0001f4a9 more é中. ",
}

OPERATIONS = [
    "len(context)",
    "context[:50]",
    "context[-50:]",
    "context[100:3000:7]",
    "context[::-1][:40]",
    "context[4090:4200]",
    "'o' in context, 'zebra' in context, 'an' in context, '\\U0001f600' in context",
    "context.find('word'), context.rfind('word'), context.find('none')",
    "context.count('o'), context.count('\\n')",
    "context.split()[:20], len(context.split('\\n')), context.splitlines()[-1], context.partition('\\n')[0]",
    "context.replace('o', '0')[:100], context.upper()[:30], context.strip()[-5:]",
    "re.findall(r'\\w+o\\w*', context)[:10], [m.start() for m in re.finditer('a', context)][:20]",
    "re.sub(r'\\s+', ' ', context)[:80]",
    "''.join([context[:5], context[-5:]]), f'{context[:9]!r:>20}', len(f'<{context}>'), len(context + context)",
    "context.encode()[:60].hex(), len(context.encode('utf-16-le')), context.encode().decode() == context",
    "context == ''.join(list(context)), context == context + '', context < context + 'x', context != 'x'",
    "{context: 1}[''.join(list(context))], context in {''.join(list(context))}",
    "max(context), min(context), sorted(set(context))[:20], context.isascii()",
    "[ord(c) for c in context[:20]], context.startswith(context[:7]), context.endswith(context[-7:])",
    "json.loads(json.dumps(context)) == context, len(json.dumps(context))",
    "context.translate({111: 'X'})[:40], context.title()[:20], context.zfill(3)[:5]",
]


@pytest.mark.parametrize("form", Form)
def test_every_form_behaves_like_a_native_string(repl: Repl, text: MakeText, form: Form) -> None:
    content = SAMPLES[form] * 500
    mapped = text(content)
    assert mapped[0].form is form
    repl.attach("context", mapped)
    repl.show("import re, json")
    for operation in OPERATIONS:
        expected = ascii(eval(operation, {"context": content, "re": re, "json": json}))
        assert repl.show(f"print(ascii(({operation})))") == expected, operation
    assert repl.show("type(context), hash(context) == hash(''.join(list(context)))") == "(<class 'str'>, True)"


@pytest.fixture(scope="module")
def reused(loaded: Loaded) -> Iterator[tuple[Repl, ExitStack]]:
    with ExitStack() as opened:
        repls = Repls(loaded)
        opened.callback(repls.close)
        repl = repls(memory_bytes=256 << 20)
        repl.show("import re, json")
        yield repl, opened


def characters(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(max_codepoint=most, exclude_categories=["Cs"]), max_size=60)


INDEX = st.integers(-70, 10_000)


@settings(max_examples=60)
@given(
    unit=st.sampled_from([0x7F, 0xFF, 0xFFFF, 0x10FFFF]).flatmap(characters),
    times=st.integers(1, 150),
    cut=st.tuples(INDEX, INDEX),
    needle=characters(0xFF).map(lambda s: s[:2]),
)
def test_any_text_gives_the_answers_of_a_native_one(
    reused: tuple[Repl, ExitStack], unit: str, times: int, cut: tuple[int, int], needle: str
) -> None:
    repl, opened = reused
    content = unit * times
    repl.attach("context", opened.enter_context(in_memory([content], Kind.TEXT)))
    operation = (
        f"(context[{cut[0]}:{cut[1]}], context.find({needle!a}), context.count({needle!a}), {needle!a} in context, "
        f"context.split({needle!a} or 'x')[:5], context[{cut[0]}:] + {needle!a}, len(context.encode()), "
        f"[m.span() for m in re.finditer(re.escape({needle!a}), context)][:10], context.replace({needle!a}, '-')[:90], "
        "context == ''.join(list(context)), {context: 1}[''.join(list(context))])"
    )
    assert repl.show(f"print(ascii({operation}))") == ascii(eval(operation, {"context": content, "re": re}))
    assert repl.show("hash(context) == hash(''.join(list(context)))") == "True"


@pytest.mark.parametrize("content", ["", "x", "é", "中", "\0", "a" * 4095, "a" * 4096, "é" * 4068, "中" * 2048])
def test_the_smallest_texts_and_those_that_end_at_a_pages_edge(repl: Repl, text: MakeText, content: str) -> None:
    repl.attach("context", text(content))
    assert repl.show(f"context == {content!r}, len(context), context + 'x' == {content + 'x'!r}") == repr(
        (True, len(content), True)
    )


def test_a_lone_surrogate_cannot_be_a_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode("\ud800")


def test_a_header_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="28 bytes"):
        header(bytes(20), Form.UCS2, 1)


def test_a_text_is_there_after_a_rollback_and_after_a_fork(start: Repls, text: MakeText) -> None:
    content = SAMPLES[Form.UCS2] * 1000
    repl = start()
    repl.attach("context", text(content))
    repl.show("piece = context[10:20]; table = {context: 'found'}")
    repl.run("context = None\nimport os; os._exit(0)")
    fork = start.fork(repl)
    for session in (repl, fork):
        assert session.show("len(context), context[10:20] == piece, table[context]") == repr(
            (len(content), True, "found")
        )
        assert session.show("print(ascii(context[-30:]), context.count('мягких'))") == f"{content[-30:]!a} 1000"


def test_the_name_comes_back_when_it_was_reassigned(repl: Repl, text: MakeText) -> None:
    repl.attach("context", text("original"))
    repl.show("context = 'other'")
    assert repl.show("context") == "'original'"
    repl.show("del context")
    assert repl.show("context") == "'original'"


def test_several_texts_live_side_by_side(repl: Repl, text: MakeText) -> None:
    for i, form in enumerate(Form):
        repl.attach(f"text_{i}", text(SAMPLES[form] * 300))
    for i, form in enumerate(Form):
        start = ascii(SAMPLES[form][:30])
        assert repl.show(f"print(ascii(text_{i}[:30]), len(text_{i}))") == f"{start} {300 * len(SAMPLES[form])}"


@pytest.mark.parametrize(
    "attempt",
    [
        "context[0] = 'X'",
        "del context[0]",
        "context += 'X'; del context",
        "memoryview(context)",
        "import sys; context = sys.intern(context)",
        "import ctypes; ctypes.memset(id(context) + 20, 88, 100)",
        "import ctypes; ctypes.string_at(id(context))",
        "for _ in range(10_000): x = context; del x",
        "import gc; del context; gc.collect()",
        "hash(context), {context}",
    ],
)
def test_no_attempt_changes_the_text(start: Repls, text: MakeText, attempt: str) -> None:
    content = SAMPLES[Form.ASCII] * 1000
    shared = text(content)
    repl, other = start(), start()
    for session in (repl, other):
        session.attach("context", shared)
    repl.run(attempt)
    for session in (repl, other):
        assert session.show("len(context), context[:19], context.count('fox')") == repr(
            (len(content), content[:19], 1000)
        )
    assert os.pread(shared.source, len(content), 0) == content.encode()  # type: ignore[arg-type]


def test_there_is_no_way_to_write_through_an_address(repl: Repl) -> None:
    turn = repl.run("import ctypes\nctypes.c_char.from_address(0)")
    assert turn.status is not Status.OK


def test_a_text_costs_a_session_nothing(start: Repls, text: MakeText) -> None:
    size = 64 << 20
    shared = text("x" * (size - 6) + "needle")
    sessions = [start() for _ in range(3)]
    for repl in sessions:
        repl.show("0")
        before = repl.session.checkpoint.private_bytes
        repl.attach("context", shared)
        assert repl.show("context.find('needle'), context.count('y')") == repr((size - 6, 0))
        assert repl.session.checkpoint.private_bytes - before < 1 << 20


def test_a_text_is_not_counted_as_the_sessions_memory(start: Repls, text: MakeText) -> None:
    repl = start(memory_bytes=64 << 20)
    repl.attach("context", text("x" * (100 << 20)))
    assert repl.show("len(context), len(bytes(8 << 20))") == repr((100 << 20, 8 << 20))
    turn = repl.run("y = bytes(64 << 20)")
    assert turn.error is not None
    assert turn.error.type == "MemoryError"


def test_a_text_that_does_not_fit_is_refused_before_the_turn(start: Repls, text: MakeText) -> None:
    small = text("x")
    repl = start()
    huge = Text(small.source, Form.ASCII, (4 << 30) - 10)
    with part_of(small, [huge], Kind.TEXT) as large, pytest.raises(MemoryError, match="4 GiB"):
        repl.session.attach("context", large)
    assert repl.show("'context' in globals()") == "False"


def test_a_text_is_one_page_aligned_copy_nowhere_in_private_memory(start: Repls, text: MakeText) -> None:
    repl = start()
    repl.attach("context", text("needle-in-a-haystack " * 10_000))
    assert memory_of(repl).count(b"needle-in-a-haystack " * 10_000) == 1
    assert not any(b"haystack needle" in piece for piece in repl.session.checkpoint.pages.contents())
