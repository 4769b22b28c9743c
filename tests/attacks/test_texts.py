"""A mapped text is the guest's own view: it can hurt it for itself alone."""

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack, each, refused, shows
from tests.attacks.conftest import Withstand

ATTACKS = [
    shows(
        "hash and key",
        "{context: 1}[context[:-1] + context[-1]] == 1 and hash(context) == hash(context[:1] + context[1:])",
        "True",
    ),
    shows("intern", "import sys; sys.intern(context) == context", "True"),
    shows("delete", "import gc; del context; gc.collect() >= 0", "True"),
    shows("many references", "x = [context] * 1_000_000; del x; context[:8]", "'the text'"),
    shows("resize", "context += 'x'; len(context)", "25001"),
    shows(
        "a copy",
        "import copy, pickle; copy.deepcopy(context) == context == pickle.loads(pickle.dumps(context))",
        "True",
    ),
    shows("replace", "context.replace('text', 'TEXT').count('TEXT')", "1000"),
    Attack("shadowed", "context = None", ("ok",)),
    refused("write", "memoryview(context)[0] = 1", "TypeError"),
    refused("item assignment", "context[0] = 'x'", "TypeError"),
    refused("more than there is", "context[len(context)]", "IndexError"),
    shows("encoded", "len(context.encode('utf-16-le')), len(context.encode())", "(50000, 25000)"),
    shows("as a regular expression's text", "import re; len(re.findall('mapped', context))", "1000"),
]


@pytest.mark.asyncio(loop_scope="package")
@each(ATTACKS)
async def test_withstood(attack: Attack, withstand: Withstand) -> None:
    await withstand(attack)
