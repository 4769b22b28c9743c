"""Serves `search` to code: RE2 over the text a session reads, on the host."""

from __future__ import annotations

import asyncio
import threading

from rlm_server.contexts.search import Match, PatternRefused, search
from sandbox.cancellation import run_to_completion
from sandbox.corpora.corpus import Corpus, CorpusDamaged
from sandbox.corpora.coverage import Range, of_range
from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.pool.pool import LiveSession

MAX_MATCHES = 10_000


async def answer_search(session: LiveSession, call: HostCall) -> Json:
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
    given_up = threading.Event()
    looking = asyncio.create_task(
        asyncio.to_thread(search, corpus, call.text("pattern"), documents, limit, cancelled=given_up.is_set)
    )
    try:
        result = await asyncio.shield(looking)
    except asyncio.CancelledError:
        given_up.set()
        await run_to_completion(asyncio.wait([looking]))
        looking.exception()
        raise
    except (PatternRefused, IndexError) as error:
        raise DoorRefusal("ValueError" if isinstance(error, PatternRefused) else "IndexError", str(error)) from None
    except (OSError, CorpusDamaged) as error:
        raise DoorRefusal("RuntimeError", f"the context cannot be read: {error}") from None
    session.saw([_shown(corpus, result.matches)])
    return {"matches": [[m.document, m.start, m.end, m.text] for m in result.matches], "more": result.more}


def _shown(corpus: Corpus, matches: tuple[Match, ...]) -> int:
    blocks = 0
    for match in matches:
        blocks |= of_range(corpus, Range(match.document, match.start, match.start + len(match.text)))
    return blocks
