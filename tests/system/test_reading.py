"""What code reads of a context: documents, searches, what children are given, and what is known to have been read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from rlm.v1 import context_pb2, run_pb2, session_pb2

from tests.servers import Served
from tests.system.stage import Caller, Play, code

BLOCK = 1 << 16
LINES = "".join(f"Line {number:07d} of a text nobody could read in one go.\n" for number in range(12_000))
"""Some 600,000 characters."""
DOCUMENTS = {
    "small.txt": "A small document about apples.\n",
    "large.txt": LINES,
    "wide.txt": "Ein größeres Dokument über Äpfel, 中文.\n" * 4000,
    "empty.txt": "",
    "last.txt": "The last one has the number 4711.\n",
}


def of_documents(documents: dict[str, str], name: str = "corpus") -> Iterator[context_pb2.UploadContextRequest]:
    data = "".join(documents.values()).encode()
    sizes = [context_pb2.UploadDocument(name=n, size_bytes=len(text.encode())) for n, text in documents.items()]
    yield context_pb2.UploadContextRequest(
        header=context_pb2.UploadHeader(
            name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), document_count=len(documents)
        )
    )
    yield context_pb2.UploadContextRequest(documents=context_pb2.UploadDocuments(documents=sizes))
    for at in range(0, len(data), 1 << 20):
        chunk = context_pb2.UploadChunk(offset=at, data=data[at : at + (1 << 20)])
        yield context_pb2.UploadContextRequest(chunk=chunk)


async def session_of(caller: Caller, session_id: str) -> session_pb2.Session:
    request = session_pb2.GetSessionRequest(session_id=session_id)
    found: session_pb2.Session = (await caller.sessions.GetSession(request, metadata=caller.metadata)).session
    return found


def read(coverage: context_pb2.Coverage) -> list[tuple[int, int, int]]:
    return [(one.document, one.start, one.end) for one in coverage.ranges]


async def test_documents_are_a_sequence_in_the_guest(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.send_parts(of_documents(DOCUMENTS))
        assert (context.kind, context.document_count) == (context_pb2.CONTEXT_KIND_DOCUMENTS, len(DOCUMENTS))
        session = await caller.open_session(context_id=context.context_id)
        turn = await caller.turn(session, "print([len(d) for d in context], context.names, context[2][:12])")
        texts = list(DOCUMENTS.values())
        assert turn.printed == f"{[len(text) for text in texts]} {list(DOCUMENTS)} {texts[2][:12]}\n"


async def test_a_session_tells_what_it_has_looked_at(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.upload(LINES)
        session = await caller.open_session(context_id=context.context_id)
        assert read((await session_of(caller, session)).coverage) == []
        await caller.turn(session, f"part = context[{3 * BLOCK} : {3 * BLOCK + 10}]")
        coverage = (await session_of(caller, session)).coverage
        assert read(coverage) == [(0, 3 * BLOCK, 4 * BLOCK)]
        assert coverage.fraction == BLOCK / len(LINES)
        await caller.turn(session, "context.count('Line')")
        assert (await session_of(caller, session)).coverage.fraction == 1.0


async def test_search_finds_positions_in_characters_and_what_it_shows_counts_as_read(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.send_parts(of_documents(DOCUMENTS))
        session = await caller.open_session(context_id=context.context_id)
        turn = await caller.turn(
            session,
            "found = search(r'number \\d+')\n"
            "print(found, found.more, context[found[0].document][found[0].start : found[0].end])\n"
            "print([m.start for m in context[2:].search('über', limit=2)])\n"
            "print(search('Line 0000007', documents=1)[0][:3])\n"
            "print(len(search('Line', limit=5)), search('Line', limit=5).more, search('nothing like this'))",
        )
        wide = DOCUMENTS["wide.txt"]
        first = wide.index("über")
        assert turn.printed.splitlines() == [
            "[Match(document=4, start=21, end=32, text='number 4711')] False number 4711",
            f"[{first}, {wide.index('über', first + 1)}]",
            f"(1, {LINES.index('Line 0000007')}, {LINES.index('Line 0000007') + 12})",
            "5 True []",
        ]
        for wrong, error in {
            "search('(')": "ValueError",
            "search('(a)\\\\1')": "ValueError",
            "search('a', documents=9)": "IndexError",
            "search('a', limit=0)": "ValueError",
            "search('a', documents='x')": "ValueError",
            "search(1)": "TypeError",
        }.items():
            assert (await caller.turn(session, wrong)).result.error.type == error, wrong
        documents = {one for one, _, _ in read((await session_of(caller, session)).coverage)}
        assert documents == {1, 2, 4}


SEARCHES = {
    r"search(re.compile(r'NUMBER \d+', re.I))[0].text": "'number 4711'",
    r"search(r'NUMBER \d+', flags=re.I)[0].text": "'number 4711'",
    r"search(re.compile(r'number [ ] \d+  # the digits', re.X))[0].text": "'number 4711'",
    r"search(r'(?ix)NUMBER \s 4711 \. \n \Z')[0].end": "34",
    "len(search(re.compile('^Line 000001', re.MULTILINE)))": "10",
    "search('number .+', flags=re.S)[0].name": "'last.txt'",
    "(p := search('Line 00000', limit=40)).more, len(p.next()), len(p.next().next())": "(True, 40, 20)",
    "p.next().next().more, p.next().next().next()": "(False, [])",
    "[*p, *p.next(), *p.next().next()] == search('Line 00000', limit=1000)": "True",
    "context['wide.txt'] == context[2], context[1:]['last.txt'][:8]": "(True, 'The last')",
    r"count('Line'), count(r'Line \d+'), count(re.compile('LINE', re.I)), count('nothing')": "(12000, 12000, 12000, 0)",
    r"count('[ÄÖ]'), count('über'), count('Äpfel', [2, 4]), count('Line', context[2:])": "(4000, 4000, 4000, 0)",
    "(q := search('number', around=4))[0].text, q[0].hits": "('the number 471', [(21, 27)])",
    "[(m.name, len(m.hits)) for m in search('apples|document', around=5)]": "[('small.txt', 2)]",
    "context[4:].search('last|one', around=3)[0].text": "'he last one ha'",
}


async def test_code_searches_with_flags_and_the_text_around_page_by_page_and_counts(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.send_parts(of_documents(DOCUMENTS))
        session = await caller.open_session(context_id=context.context_id)
        await caller.turn(session, "import re")
        for asked, answer in SEARCHES.items():
            turn = await caller.turn(session, asked)
            assert turn.printed.strip() == answer, (asked, turn.result.error.message)
        for wrong, error in {
            "count('(')": "ValueError",
            "count('a', documents=9)": "IndexError",
            "count(b'a')": "TypeError",
            "search('a', around=100_000)": "ValueError",
            "search(re.compile('b(?=c)'))": "ValueError",
            "context['no such name']": "KeyError",
            "context[:2]['wide.txt']": "KeyError",
        }.items():
            assert (await caller.turn(session, wrong)).result.error.type == error, wrong


async def test_what_a_call_was_sent_of_the_context_is_recorded_with_it(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.send_parts(of_documents(DOCUMENTS))
        session = await caller.open_session(context_id=context.context_id)
        traced = []
        source = (
            "llm_query('Sum up:[' + context[1][5300:6300] + '] Thank you.')\n"
            "llm_query('Nothing of it.')\n"
            "llm_query(context[2][100:200] + '###' + context[4])"
        )
        calls = []
        async for response in caller.execute(session, source):
            match response.WhichOneof("event"):
                case "call_traced":
                    traced.append(response.call_traced)
                case "call_finished":
                    calls.append(response.call_finished.call_id)
        by_call = {
            one.call_id: [(p.range.document, p.range.start, p.range.end, p.prompt_start) for p in one.passages]
            for one in traced
        }
        assert by_call[calls[0]] == [(1, 5300, 6300, 8)]
        assert by_call[calls[1]] == []
        (passage,) = by_call[calls[2]]  # the last document has fewer than 64 characters
        document, start, end, at = passage
        assert (document, end - start, at) == (2, 100, 0)
        assert DOCUMENTS["wide.txt"][start:end] == DOCUMENTS["wide.txt"][100:200]


async def test_a_runs_coverage_and_lineage_are_those_of_its_whole_tree(server: Served) -> None:
    parts = f"context[{2 * BLOCK} : {4 * BLOCK}]"
    script = Play(
        code(f"print(context[:500])\nreplies = rlm_query_batched(['child', 'other'], [{parts}, 'a text of its own'])"),
        code("FINAL(' '.join(replies))"),
        child=code("FINAL(llm_query('Say:[' + context[1000:1100] + ']') + str(len(context)))"),
        other=code("FINAL(context)"),
        sub=lambda prompt: "said",
    )
    async with server(script) as served:
        caller = served.caller
        context = await caller.upload(LINES)
        ended = await caller.ask(context_id=context.context_id)
        assert ended.run.answer == f"said{2 * BLOCK} a text of its own"
        nodes = {node.question: node for node in ended.nodes}
        root, child, other = nodes["What?"], nodes["child"], nodes["other"]
        assert read(ended.run.coverage) == [(0, 0, BLOCK), (0, 2 * BLOCK, 4 * BLOCK)]
        assert root.coverage_fraction == 3 * BLOCK / len(LINES)
        assert 0 < child.coverage_fraction <= 0.5
        assert other.coverage_fraction == 1.0
        (called,) = ended.bodies("call_finished")
        by_call = {one.call_id: one for one in ended.bodies("call_traced")}
        (passage,) = by_call[called.call.call_id].passages
        assert (passage.range.start, passage.range.end) == (2 * BLOCK + 1000, 2 * BLOCK + 1100)
        replies = [e.model_replied for e in ended.events if e.depth == 0 and e.WhichOneof("body") == "model_replied"]
        first, second = [by_call[reply.call_id] for reply in replies]
        assert list(first.passages) == []
        assert (0, 0, 500) in [(p.range.document, p.range.start, p.range.end) for p in second.passages]
        assert all(event.coverage.fraction for event in ended.bodies("turn_checkpointed"))
        assert await caller.get(ended.run.run_id) == ended.run


async def test_the_model_is_told_how_much_was_looked_at(server: Served) -> None:
    script = Play(code(f"x = context[{BLOCK}]"), code("FINAL(x)"))
    async with server(script) as served:
        context = await served.caller.upload(LINES)
        await served.caller.ask(context_id=context.context_id)
        assert "Your code has touched 0% of it" in script.asked[0].messages[0].content
        told = script.asked[1].messages[-1].content
        assert f"Your code has touched {BLOCK / len(LINES):.1%} of it (characters 65,536-131,072)" in told


async def test_children_get_parts_documents_and_new_texts(server: Served) -> None:
    async def seen(prompt: str) -> str:
        return prompt

    look = code("FINAL(f'{type(context).__name__} {len(context)} {context[0][:9]} {context[-1][-9:]}')")
    script = Play(
        code(
            "odd = context[1][1:100002]\n"
            "given = [context[1], context[1][4:100004], odd, context[2][8:90008], context[1:3], context[::2], "
            "['new', 'texts'], 'a new text', context[4]]\n"
            "answers = rlm_query_batched(['child'] * len(given), given)\nFINAL('\\n'.join(answers))"
        ),
        child=look,
    )
    async with server(script) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        texts = list(DOCUMENTS.values())
        given = [
            texts[1], texts[1][4:100004], texts[1][1:100002], texts[2][8:90008], texts[1:3], texts[::2],
            ["new", "texts"], "a new text", texts[4],
        ]  # fmt: skip

        def shown(one: Sequence[str]) -> str:
            kind = "str" if isinstance(one, str) else "Documents"
            return f"{kind} {len(one)} {one[0][:9]} {one[-1][-9:]}"

        assert ended.run.answer.split("\n") == "\n".join(map(shown, given)).split("\n")
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_what_code_cannot_give_a_child_is_an_error_in_the_code(server: Served) -> None:
    forged = [
        "{'corpus': 0, 'document': 5, 'start': 0, 'end': 1}",
        "{'corpus': 0, 'document': 0, 'start': 0, 'end': 1 << 40}",
        "{'corpus': 0, 'document': 0, 'start': 5, 'end': 1}",
        "{'corpus': 0, 'document': True, 'start': 0, 'end': 1}",
        "{'corpus': 1, 'document': 0, 'start': 0, 'end': 1}",
        "{'corpus': 0, 'documents': [0, 1000000, 1]}",
        "{'corpus': 0, 'documents': [0, 2, 0]}",
        "{'corpus': 0, 'documents': [-3, 2, 1]}",
        "{'corpus': 0, 'documents': 5}",
        "{}",
        "None",
        "[1]",
        "5",
    ]
    script = Play(
        code(
            "import _door\nends = []\n"
            f"for context_given in [{', '.join(forged)}]:\n"
            "    try:\n"
            "        _door.call('rlm_query', prompts=['child'], contexts=[context_given], model=None, budget=None)\n"
            "        ends.append('no error')\n"
            "    except (TypeError, IndexError, ValueError) as error:\n"
            "        ends.append(type(error).__name__)\n"
            "try:\n    rlm_query('child', context=5)\nexcept TypeError:\n    ends.append('TypeError')\n"
            "FINAL(' '.join(ends))"
        ),
        child=code("FINAL(1)"),
    )
    async with server(script) as served:
        context = await served.caller.send_parts(of_documents(DOCUMENTS))
        ended = await served.caller.ask(context_id=context.context_id)
        ends = ended.run.answer.split()
        assert len(ends) == len(forged) + 1
        assert set(ends) <= {"TypeError", "IndexError"}, ended.run.answer
