"""The results of turns, remembered for callers who repeat a request, and the ids of turns whose result is forgotten.

A turn has the same id whenever its request comes. One that has run does not run again for as long as its id is known:
its result is the answer, or that it is forgotten. Both take memory of the tenant's. Where there is no more, its oldest
results are forgotten, and then its oldest ids: a request of whose turn nothing is known runs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from rlm_server.database.requests import RequestIdReused
from rlm_server.repl.events import CodeFinished
from rlm_server.sessions.happenings import size_of_result, without_output
from rlm_server.sessions.turn import TurnRequest
from rlm_server.sessions.turn_notes import RanTurn
from rlm_server.shares.held import Held, TooMuchHeld

REMEMBERED_RESULTS = 64
"""Results of a session's last turns."""

REMEMBERED_REQUESTS = 1_000
"""Requests of a session whose ids are remembered; those whose result is remembered are among them."""

RESULT_BYTES = 1 << 20
"""Bytes of all the remembered results of a session."""

ENTRY_BYTES = 1_024
"""Counted for an id, and for a result besides its texts."""


class ResultForgotten(Exception):
    """The request has run, and what came of it is no longer remembered."""

    def __init__(self) -> None:
        super().__init__("this request has run already, and its result is no longer remembered; it does not run again")


@dataclass(slots=True)
class _OfSession:
    requests: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """What they asked for, by the ids of their turns."""
    results: OrderedDict[str, CodeFinished] = field(default_factory=OrderedDict)
    size: int = 0


@dataclass(slots=True)
class _OfTenant:
    """By session and turn, the oldest first."""

    requests: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    results: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)


class Results:
    """Remembers the results of sessions' turns, in the memory that `held` counts for their tenants."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._sessions: dict[str, _OfSession] = {}
        self._tenants: dict[str, _OfTenant] = {}

    def find(self, session: str, turn: str, request: TurnRequest | None = None) -> CodeFinished | None:
        """Return the result of a turn, without what it printed; None where it has not run.

        Raises:
            ResultForgotten: it has run, and its result is forgotten.
            RequestIdReused: another request with the same id has.
        """
        known = self._sessions.get(session)
        if known is None or turn not in known.requests:
            return None
        if request is not None and known.requests[turn] != request.content_sha256:
            raise RequestIdReused(request.id)
        if turn not in known.results:
            raise ResultForgotten
        return known.results[turn]

    def ran(self, session: str) -> list[RanTurn]:
        """Return what is known of a session's turns, the oldest first."""
        known = self._sessions.get(session)
        if known is None:
            return []
        return [RanTurn(turn, content, known.results.get(turn)) for turn, content in known.requests.items()]

    def remember(
        self, tenant: str, session: str, turn: str, content_sha256: str, result: CodeFinished | None
    ) -> None:  # fmt: skip
        """Keep that a turn has run, what was asked for, and what came of it, as far as there is room.

        Without a result, it is forgotten already.
        """
        of_session = self._sessions.setdefault(session, _OfSession())
        of_tenant = self._tenants.setdefault(tenant, _OfTenant())
        if len(of_session.requests) >= REMEMBERED_REQUESTS:
            self._forget_request(tenant, session, next(iter(of_session.requests)))
        if not self._make_room(tenant, ENTRY_BYTES, requests=True):
            return
        of_session.requests[turn] = content_sha256
        of_tenant.requests[session, turn] = None
        if result is None:
            return
        result = without_output(result)
        size = _size(result)
        while of_session.results and (
            len(of_session.results) >= REMEMBERED_RESULTS or of_session.size + size > RESULT_BYTES
        ):
            self._forget_result(tenant, session, next(iter(of_session.results)))
        if size <= RESULT_BYTES and self._make_room(tenant, size, requests=False):
            of_session.results[turn] = result
            of_session.size += size
            of_tenant.results[session, turn] = None

    def forget(self, tenant: str, session: str) -> None:
        """Forget all of a session, which has ended."""
        known = self._sessions.get(session)
        if known is not None:
            for turn in list(known.requests):
                self._forget_request(tenant, session, turn)
            del self._sessions[session]
        if tenant in self._tenants and not self._tenants[tenant].requests:
            del self._tenants[tenant]

    def _make_room(self, tenant: str, size: int, *, requests: bool) -> bool:
        """Count bytes, and forget the tenant's oldest results for them, and its oldest requests where that is said."""
        known = self._tenants[tenant]
        while True:
            try:
                self._held.take(tenant, size, "the results of turns")
            except TooMuchHeld:
                if known.results:
                    self._forget_result(tenant, *next(iter(known.results)))
                elif requests and known.requests:
                    self._forget_request(tenant, *next(iter(known.requests)))
                else:
                    return False
            else:
                return True

    def _forget_request(self, tenant: str, session: str, turn: str) -> None:
        if turn in self._sessions[session].results:
            self._forget_result(tenant, session, turn)
        del self._sessions[session].requests[turn]
        del self._tenants[tenant].requests[session, turn]
        self._held.give_back(tenant, ENTRY_BYTES)

    def _forget_result(self, tenant: str, session: str, turn: str) -> None:
        of_session = self._sessions[session]
        size = _size(of_session.results.pop(turn))
        of_session.size -= size
        del self._tenants[tenant].results[session, turn]
        self._held.give_back(tenant, size)


def _size(result: CodeFinished) -> int:
    """Return the bytes of memory that a result takes."""
    return ENTRY_BYTES + size_of_result(result.result)
