"""What `context` is."""

from __future__ import annotations

import pytest

from tests.compatibility.theatre import Case, Theatre, blocks, played
from tests.system.stage import Ended, Play

SECRET = "the needle of this haystack"
LARGE = "x" * 1_000_000 + SECRET + "y" * 1_000_000


def never_sent(_: Ended, play: Play) -> None:
    sent = "".join(message.content for request in play.asked for message in request.messages)
    assert SECRET not in sent.replace(repr(SECRET), "")
    assert "2,000,0" in sent  # its size is


CASES = (
    blocks(
        "a_text_is_a_str",
        "FINAL(str([isinstance(context, str), len(context), context.upper()]))",
        answer="[True, 4, 'TEXT']",
        context="text",
    ),
    blocks(
        "documents_are_a_sequence_of_texts",
        "FINAL(str([len(context), context[0], context[-1], [len(text) for text in context]]))",
        answer="[3, 'first', 'the third', [5, 6, 9]]",
        context=["first", "second", "the third"],
    ),
    blocks(
        "documents_cannot_be_changed",
        "try:\n    context[0] = 'other'\nexcept TypeError:\n    FINAL(context[0])",
        answer="first",
        context=["first", "second"],
    ),
    blocks(
        "json_is_text_that_code_reads",
        "import json\nfound = json.loads(context)\nFINAL(found['number'] + found['list'][1])",
        answer="44",
        context='{"number": 42, "list": [1, 2]}',
    ),
    blocks("without_a_context_it_is_empty", "FINAL(len(context))", answer="0"),
    blocks(
        "a_large_text_is_never_sent_to_the_model",
        f"FINAL(context.index({SECRET!r}))",
        answer="1000000",
        context=LARGE,
        check=never_sent,
    ),
    blocks(
        "places_in_a_text_are_characters",
        "FINAL(str([len(context), context[2]]))",
        answer="[4, '🙂']",
        context="äö🙂日",
    ),
)


@pytest.mark.asyncio(loop_scope="package")
@played(CASES)
async def test_contexts(theatre: Theatre, played_case: Case) -> None:
    await theatre.run(played_case)
