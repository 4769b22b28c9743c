"""`search`: the program looks for a pattern in its context, on the host. Runs inside the sandbox."""

import collections
import re

import _documents
import _door
from _rlm import offered, text


class _Named:
    """Something in a document, by its number."""

    __slots__ = ()

    @property
    def name(self):
        """The document's name; empty where it has none."""
        return _documents.name_of(self.document)


class Match(_Named, collections.namedtuple("Match", "document start end text")):
    """Where a pattern matches: the document's number, the first character, the one after the last, and the text."""

    __slots__ = ()


class Passage(_Named, collections.namedtuple("Passage", "document start end text hits")):
    """The text around matches that are near each other; `hits` are the matches in it, (start, end) of each."""

    __slots__ = ()


class Matches(list):
    """Matches in the order of the text; `more` is True where there may be others, which `next()` returns."""

    more = False
    _ask = None

    def next(self):
        """Return the matches that come after these; none where there are no more."""
        return self._ask() if self.more else Matches()


_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s"}
_LEADING = re.compile(r"\(\?([aimsux]+)\)")
_PARTS = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|#[^\n]*|\s+|(.)", re.DOTALL)


def written(pattern, flags=0):
    """Return a pattern as RE2 reads it: of a str, or of what re.compile returned, with flags."""
    if isinstance(pattern, re.Pattern):
        pattern, flags = pattern.pattern, flags | pattern.flags
    if isinstance(pattern, bytes):
        raise TypeError("pattern must be str, not bytes: the context is text")
    text("pattern", pattern)
    flags = re.RegexFlag(flags)
    leading = _LEADING.match(pattern)
    if leading is not None:  # RE2 knows fewer letters there
        pattern = pattern[leading.end() :]
        for letter in leading[1]:
            flags |= getattr(re, letter.upper())
    if flags & re.VERBOSE:
        pattern = _PARTS.sub(lambda part: (part[1] or "") + (part[2] or ""), pattern)
    pattern = re.sub(r"\\.", lambda escape: r"\z" if escape[0] == r"\Z" else escape[0], pattern, flags=re.DOTALL)
    letters = "".join(letter for flag, letter in _FLAGS.items() if flags & flag)
    return f"(?{letters}){pattern}" if letters else pattern


def where(documents):
    """Return which documents are meant, as a request says it: {documents, part}."""
    if isinstance(documents, _documents.Documents):
        numbers = documents._numbers
        return {"documents": None, "part": [numbers.start, numbers.stop, numbers.step]}
    if documents is not None:
        documents = [documents] if isinstance(documents, int) else [int(number) for number in documents]
    return {"documents": documents, "part": None}


@offered
def search(pattern, documents=None, limit=100, *, around=0, flags=0):
    """Find where a regular expression matches in the context, on the host: a list of Match, and `.next()` for more.

    pattern: RE2's syntax, as a str or from re.compile; flags as of `re`.
    documents: only in these, by their numbers, or a part of the context such as context[10:20].
    around: characters of the text before and after each match to return with it; near ones come as one Passage.
    """
    return _page({"pattern": written(pattern, flags), **where(documents), "limit": limit, "around": around}, None)


def _page(asked, after):
    reply = _door.call("search", **asked, after=after)
    if asked["around"]:
        matches = Matches(Passage(*found[:4], [tuple(hit) for hit in found[4]]) for found in reply["matches"])
    else:
        matches = Matches(Match(*found) for found in reply["matches"])
    matches.more = reply["more"]
    if matches.more:
        matches._ask = lambda: _page(asked, reply["next"])
    return matches


_documents._search[0] = search
