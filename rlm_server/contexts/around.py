"""The text around matches: those that are near each other come as one passage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlm_server.contexts.search import ALL_SHOWN, Found, Match
from sandbox.corpora.corpus import Corpus

MAX_AROUND = 10_000
"""Characters before and after a match that are returned with it, at most."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters `start` up to `end` of a document, and which matches are in it: the first character, and the end."""

    document: int
    start: int
    end: int
    text: str
    hits: tuple[tuple[int, int], ...]


def around_matches(corpus: Corpus, found: Found, around: int) -> tuple[Found, list[Passage]]:
    """Return the text `around` characters before and after each match, and what was found up to where it was too much.

    Passages that touch are one. After the passage that brings the text to `ALL_SHOWN` characters come no more. A match
    longer than `ALL_SHOWN` is shown in part.

    Raises:
        OSError, EOFError, CorpusDamaged: as `search` does.
    """
    groups: list[list[Match]] = []
    reach = 0
    for match in found.matches:
        near = groups and groups[-1][-1].document == match.document and match.start - around <= reach
        if near:
            groups[-1].append(match)
        else:
            groups.append([match])
        reach = match.end + around
    passages: list[Passage] = []
    shown = taken = 0
    for group in groups:
        if shown >= ALL_SHOWN:
            return replace(found, matches=found.matches[:taken], more=True), passages
        text, taken = corpus[group[0].document], taken + len(group)
        start = max(0, group[0].start - around)
        end = min(group[-1].end + around, text.characters, start + ALL_SHOWN)
        hits = tuple((match.start, match.end) for match in group)
        passages.append(Passage(group[0].document, start, end, text.read(start, end), hits))
        shown += end - start
    return found, passages
