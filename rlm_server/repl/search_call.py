"""Serves `search` to code: RE2 over the text a session reads, on the host."""

from __future__ import annotations

import time

from rlm_server.contexts.search import SEARCH_SECONDS, Found, Match, PatternRefused, SearchTooLong, search
from rlm_server.repl.document_numbers import part_of_documents
from rlm_server.repl.metering import check_host_time
from rlm_server.shares.gate import WaitedTooLong
from rlm_server.shares.threads import Cancelled, Purpose, Threads
from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.corpora.coverage import Range, of_ranges
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.pool.pool import LiveSession

MAX_MATCHES = 10_000


async def answer_search(session: LiveSession, call: HostCall, tenant: str, threads: Threads) -> Json:
    """Answer a request `search(pattern, documents, part, limit)`: matches and `more`.

    A match is [document, start, end, text]. What it shows of the text counts as looked at.
    """
    if not session.corpora:
        raise DoorRefusal("RuntimeError", "there is no context to search")
    corpus, limit = session.corpora[0], call.integer("limit")
    documents = _numbers(call, len(corpus))
    if not 1 <= limit <= MAX_MATCHES:
        raise DoorRefusal("ValueError", f"limit must be from 1 to {MAX_MATCHES}, not {limit}")
    pattern = call.text("pattern")

    def look(cancelled: Cancelled) -> tuple[Found, int]:
        found = search(corpus, pattern, documents, limit, cancelled=cancelled)
        return found, _shown(corpus, found.matches)

    try:
        found, blocks = await threads.run(Purpose.SEARCH, tenant, look, deadline=time.monotonic() + SEARCH_SECONDS)
    except (PatternRefused, IndexError) as error:
        raise DoorRefusal("ValueError" if isinstance(error, PatternRefused) else "IndexError", str(error)) from None
    except WaitedTooLong:
        raise DoorRefusal("LimitExceeded", str(SearchTooLong())) from None
    except (OSError, CorpusDamaged) as error:
        raise DoorRefusal("RuntimeError", f"the context cannot be read: {error}") from None
    session.saw([blocks])
    if found.stopped:
        check_host_time()
        raise DoorRefusal("LimitExceeded", str(SearchTooLong()))
    return {"matches": [[m.document, m.start, m.end, m.text] for m in found.matches], "more": found.more}


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
