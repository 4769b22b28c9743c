"""Serves `search` and `count` to code: RE2 over the text a session reads, on the host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from rlm_server.contexts.around import MAX_AROUND, Passage, around_matches
from rlm_server.contexts.count import Count
from rlm_server.contexts.search import SEARCH_SECONDS, Found, Match, PatternRefused, SearchTooLong, search
from rlm_server.repl.document_numbers import part_of_documents
from rlm_server.repl.metering import check_host_time
from rlm_server.shares.gate import WaitedTooLong
from rlm_server.shares.threads import Cancelled, Purpose, Threads
from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.corpora.coverage import Range, of_ranges
from sandbox.door import INTEGER, DoorRefusal, HostCall, Json
from sandbox.pool.pool import LiveSession

_T = TypeVar("_T")

MAX_MATCHES = 10_000


async def answer_search(session: LiveSession, call: HostCall, tenant: str, threads: Threads) -> Json:
    """Answer a request `search(pattern, documents, part, limit, around, after)`: matches, `more` and `next`.

    A match is [document, start, end, text]. With `around`, it is a passage: the text so many characters around matches,
    and as a fifth what matches in it, [start, end] of each. `next` is where the following matches begin, as `after`
    takes it. What is shown of the text counts as looked at.
    """
    corpus = _corpus(session)
    limit, around = call.integer("limit"), call.arguments.get("around") or 0
    documents, after = _numbers(call, len(corpus)), _after(call)
    if not 1 <= limit <= MAX_MATCHES:
        raise DoorRefusal("ValueError", f"limit must be from 1 to {MAX_MATCHES}, not {limit}; next() goes on")
    if around > MAX_AROUND:
        raise DoorRefusal("ValueError", f"around must be from 0 to {MAX_AROUND:,} characters, not {around:,}")
    pattern = call.text("pattern")

    def look(cancelled: Cancelled) -> tuple[Found, list[Passage], int]:
        found = search(corpus, pattern, documents, limit, after=after, cancelled=cancelled)
        if found.stopped or not around:
            return found, [], _shown(corpus, found.matches)
        found, passages = around_matches(corpus, found, around)
        return found, passages, of_ranges(corpus, (Range(one.document, one.start, one.end) for one in passages))

    found, passages, blocks = await _in_thread(threads, tenant, look)
    session.saw([blocks])
    if found.stopped:
        raise _stopped()
    last = found.matches[-1] if found.matches else None
    following = None if last is None or not found.more else [last.document, max(last.end, last.start + 1)]
    shown: list[Json] = (
        [[one.document, one.start, one.end, one.text, [list(hit) for hit in one.hits]] for one in passages]
        if around
        else [[m.document, m.start, m.end, m.text] for m in found.matches]
    )
    return {"matches": shown, "more": following is not None, "next": following}


async def answer_count(session: LiveSession, call: HostCall, tenant: str, threads: Threads) -> Json:
    """Answer a request `count(pattern, documents, part)`: how often it matches. Both halves are counted at once."""
    corpus, pattern = _corpus(session), call.text("pattern")
    documents = _numbers(call, len(corpus))
    counting = await _in_thread(threads, tenant, lambda _: Count.of(corpus, pattern, documents))
    try:
        async with asyncio.TaskGroup() as both:
            halves = [
                both.create_task(_in_thread(threads, tenant, partial(counting.tally, part)))
                for part in range(len(counting.parts))
            ]
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    tallies = [half.result() for half in halves]
    counted = await _in_thread(threads, tenant, lambda cancelled: counting.joined(tallies, cancelled))
    if counted.stopped:
        raise _stopped()
    return counted.matches


def _corpus(session: LiveSession) -> Corpus:
    if not session.corpora:
        raise DoorRefusal("RuntimeError", "there is no context to search")
    return session.corpora[0]


async def _in_thread(threads: Threads, tenant: str, work: Callable[[Cancelled], _T]) -> _T:
    """Do work over the text in a thread for searches, and refuse the request as its error says."""
    try:
        return await threads.run(Purpose.SEARCH, tenant, work, deadline=time.monotonic() + SEARCH_SECONDS)
    except (PatternRefused, IndexError) as error:
        raise DoorRefusal("ValueError" if isinstance(error, PatternRefused) else "IndexError", str(error)) from None
    except WaitedTooLong:
        raise DoorRefusal("LimitExceeded", str(SearchTooLong())) from None
    except (OSError, CorpusDamaged) as error:
        raise DoorRefusal("RuntimeError", f"the context cannot be read: {error}") from None


def _stopped() -> DoorRefusal:
    check_host_time()
    return DoorRefusal("LimitExceeded", str(SearchTooLong()))


def _after(call: HostCall) -> tuple[int, int] | None:
    after = call.arguments.get("after")
    if after is None:
        return None
    if len(after) != 2 or not all(INTEGER.fits(one) for one in after):
        raise DoorRefusal("ValueError", "after must be a document's number and a character of it")
    return after[0], after[1]


def _numbers(call: HostCall, count: int) -> list[int] | range | None:
    """Return the numbers of the documents to search: a list, or a part, [start, stop, step]; None means all."""
    listed, part = call.arguments.get("documents"), call.arguments.get("part")
    if part is None:
        if listed is not None and not (isinstance(listed, list) and all(type(one) is int for one in listed)):
            raise DoorRefusal("TypeError", "documents must be None or numbers of documents")
        return listed
    return part_of_documents("part", part, count)


def _shown(corpus: Corpus, matches: tuple[Match, ...]) -> int:
    return of_ranges(corpus, (Range(m.document, m.start, m.start + len(m.text)) for m in matches))
