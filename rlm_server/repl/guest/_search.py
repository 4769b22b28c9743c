"""`search`: the program looks for a pattern in its context, on the host. Runs inside the sandbox."""

import collections

import _documents
import _door
from _rlm import offered, text


class Match(collections.namedtuple("Match", "document start end text")):
    """Where a pattern matches: the document's number, the first character, the one after the last, and the text."""

    __slots__ = ()


class Matches(list):
    """Matches in the order of the text; `more` is True where there may be others beyond the limit."""

    more = False


@offered
def search(pattern, documents=None, limit=100):
    """Find where a regular expression (RE2's syntax) matches in the context, on the host: see Match and Matches.

    documents: only in these, by their numbers, or a part of the context such as context[10:20].
    """
    part = None
    if isinstance(documents, _documents.Documents):
        numbers, documents = documents._numbers, None
        part = [numbers.start, numbers.stop, numbers.step]
    elif documents is not None:
        documents = [documents] if isinstance(documents, int) else [int(number) for number in documents]
    reply = _door.call("search", pattern=text("pattern", pattern), documents=documents, part=part, limit=limit)
    matches = Matches(Match(*match) for match in reply["matches"])
    matches.more = reply["more"]
    return matches


_documents._search[0] = search
