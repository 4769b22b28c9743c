"""Serves `search` to code: RE2 over the text a session reads, on the host."""

from __future__ import annotations

import time

from rlm_server.contexts.search import SEARCH_SECONDS, Found, Match, PatternRefused, SearchTooLong, search
from rlm_server.repl.metering import check_host_time
from rlm_server.shares.gate import WaitedTooLong
from rlm_server.shares.threads import Cancelled, Purpose, Threads
from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.corpora.coverage import Range, of_range
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.pool.pool import LiveSession

MAX_MATCHES = 10_000


async def answer_search(session: LiveSession, call: HostCall, tenant: str, threads: Threads) -> Json:
    """Answer a request `search(pattern, documents, limit)`: matches, each [document, start, end, text], and `more`.

    What it shows of the text counts as looked at.
    """
    if not session.corpora:
        raise DoorRefusal("RuntimeError", "there is no context to search")
    corpus, limit, documents = session.corpora[0], call.integer("limit"), call.arguments.get("documents")
    if not 1 <= limit <= MAX_MATCHES:
        raise DoorRefusal("ValueError", f"limit must be from 1 to {MAX_MATCHES}, not {limit}")
    if documents is not None and not (isinstance(documents, list) and all(type(one) is int for one in documents)):
        raise DoorRefusal("TypeError", "documents must be None or numbers of documents")
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


def _shown(corpus: Corpus, matches: tuple[Match, ...]) -> int:
    blocks = 0
    for match in matches:
        blocks |= of_range(corpus, Range(match.document, match.start, match.start + len(match.text)))
    return blocks
