"""REPLs for a program with a loop of its own: the part of the client that makes sessions and runs turns in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Protocol

from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import session_pb2, session_pb2_grpc, types_pb2

from rlm_client.connection import Connection
from rlm_client.durations import seconds, stamp
from rlm_client.money import Budget
from rlm_client.pages import pages
from rlm_client.retry import Retry, named
from rlm_client.snapshot_calls import SnapshotCalls
from rlm_client.watch import Stream, resumed

_TURN_SECONDS = 3_600.0
"""What `execute_once` waits for a turn, and for those before it, where its caller does not say."""


class SessionCalls(SnapshotCalls):
    """The calls of `SessionService`. Everything is the caller's own tenant's."""

    def __init__(self, connection: Connection, retry: Retry | None, watch_retry: Retry | None) -> None:
        super().__init__(connection, retry)
        self._watch_retry = watch_retry or Retry(attempts=10)
        self._sessions = session_pb2_grpc.SessionServiceStub(connection.channel)

    def create_session(
        self,
        context_id: str = "",
        *,
        image: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        limits: types_pb2.SandboxLimits | None = None,
        account_id: str = "",
        labels: Mapping[str, str] | None = None,
        idle_seconds: float | None = None,
        life_seconds: float | None = None,
        snapshot_id: str = "",
        request_id: str | None = None,
    ) -> session_pb2.Session:
        """Start a REPL with its own memory and account; a context given is its variable `context`.

        `account_id` is the customer who pays. It ends after `idle_seconds` without a turn, and `life_seconds` after it
        was made; what is left out is as the server says. With a snapshot it begins as that is, and has its image and
        context.

        Raises:
            BudgetRefused: the tenant cannot cover the budget.
        """
        request = session_pb2.CreateSessionRequest(
            request_id=named(request_id),
            image=image,
            context_id=context_id,
            sub_model=sub_model,
            budget=None if budget is None else budget.message(),
            limits=limits,
            account_id=account_id,
            labels=labels,
            idle_time=None if idle_seconds is None else seconds(idle_seconds),
            life_time=None if life_seconds is None else seconds(life_seconds),
            snapshot_id=snapshot_id,
        )
        return self._unary(self._sessions.CreateSession, request).session

    def get_session(self, session_id: str) -> session_pb2.Session:
        """Describe a session, and how much of its context it has looked at. One that ended is described for a day."""
        request = session_pb2.GetSessionRequest(session_id=session_id)
        return self._unary(self._sessions.GetSession, request).session

    def list_sessions(
        self,
        states: Iterable[session_pb2.SessionState.ValueType] = (),
        *,
        labels: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        account_id: str = "",
    ) -> Iterator[session_pb2.Session]:
        """Give your sessions, the newest first, asking for more as they are taken; those that ended within a day, too.

        They are in one of `states`, have all `labels`, were made at `since` or later and before `until`, and are paid
        for by the account. What is left out is not asked for. A time without a zone is UTC.
        """
        request = session_pb2.ListSessionsRequest(
            states=states, labels=labels, since=stamp(since), until=stamp(until), account_id=account_id
        )
        for page in pages(partial(self._unary, self._sessions.ListSessions), request):
            yield from page.sessions

    def update_session(
        self,
        session_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        idle_seconds: float | None = None,
        life_seconds: float | None = None,
        request_id: str | None = None,
    ) -> session_pb2.Session:
        """Change a session's labels, all of them, and how long it may rest and live. What is left out stays.

        A time of 0 goes back to the server's.
        """
        given = {"labels": labels, "idle_time": idle_seconds, "life_time": life_seconds}
        request = session_pb2.UpdateSessionRequest(
            request_id=named(request_id),
            session=session_pb2.Session(
                session_id=session_id,
                labels=labels,
                idle_time=None if idle_seconds is None else seconds(idle_seconds),
                life_time=None if life_seconds is None else seconds(life_seconds),
            ),
            update_mask=FieldMask(paths=[name for name, value in given.items() if value is not None]),
        )
        return self._unary(self._sessions.UpdateSession, request).session

    def delete_session(self, session_id: str, *, request_id: str | None = None) -> types_pb2.Amounts:
        """End a session; gives what it spent in all."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id, request_id=named(request_id))
        return self._unary(self._sessions.DeleteSession, request).spent

    def execute(
        self, session_id: str, code: str, *, detached: bool = False, request_id: str | None = None
    ) -> Iterator[session_pb2.ExecuteResponse]:
        """Run Python source as one turn, and give its output, calls and result as they come; the result is last.

        Where `turn_restarted` comes the code runs again from its start, and the output before it is void.

        A connection that breaks midway stops the turn and is not resumed: the same call with the same `request_id`
        returns the first result, and runs nothing twice. A `detached` turn goes on, its connection is made again, and
        nothing that happens is given twice or missed, unless `left_out` says so.

        Raises:
            Unavailable: the server stayed away, of a detached turn for as long as `watch_retry` allows.
        """
        request = session_pb2.ExecuteRequest(
            request_id=named(request_id), session_id=session_id, code=code, detached=detached
        )
        told = self._resumed(request) if detached else self._streamed(self._sessions.Execute, request)
        return (response for response in told if not response.HasField("heartbeat"))

    def execute_once(
        self, session_id: str, code: str, *, seconds: float = _TURN_SECONDS, request_id: str | None = None
    ) -> session_pb2.ExecuteOnceResponse:
        """Run Python source as one turn, and give its output and its result at once.

        Raises:
            DeadlineExceeded: that took more than so many seconds; the turn was stopped and rolled back.
        """
        request = session_pb2.ExecuteOnceRequest(request_id=named(request_id), session_id=session_id, code=code)
        return self._unary(self._sessions.ExecuteOnce, request, seconds)

    def watch_turn(
        self, session_id: str, turn_id: str = "", *, request_id: str = "", from_sequence: int = 1
    ) -> Iterator[session_pb2.ExecuteResponse]:
        """Give what happens in a detached turn, by its id or its request's, from a number on, until its result.

        A broken connection is made again, and the watch goes on after the last that was seen.

        Raises:
            Unavailable: the server stayed away for as long as `watch_retry` allows without anything new.
        """

        def open_at(sequence: int) -> Stream[session_pb2.ExecuteResponse]:
            return self._watch(session_id, turn_id, request_id, sequence)

        told = resumed(open_at, from_sequence, self._watch_retry)
        return (response for response in told if not response.HasField("heartbeat"))

    def interrupt_session(self, session_id: str, turn_id: str = "", *, request_id: str | None = None) -> bool:
        """Stop the turn under way, or only this detached one, and roll it back; says whether there was one."""
        request = session_pb2.InterruptSessionRequest(
            request_id=named(request_id), session_id=session_id, turn_id=turn_id
        )
        return self._unary(self._sessions.InterruptSession, request).interrupted

    def _resumed(self, request: session_pb2.ExecuteRequest) -> Iterator[session_pb2.ExecuteResponse]:
        def open_at(sequence: int) -> Stream[session_pb2.ExecuteResponse]:
            if sequence > 1:
                return self._watch(request.session_id, "", request.request_id, sequence)
            return _Executed(self._sessions.Execute(request, metadata=self._metadata))

        return resumed(open_at, 1, self._watch_retry)

    def _watch(
        self, session_id: str, turn_id: str, request_id: str, sequence: int
    ) -> Stream[session_pb2.ExecuteResponse]:
        request = session_pb2.WatchTurnRequest(session_id=session_id, from_sequence=sequence)
        if turn_id:
            request.turn_id = turn_id
        else:
            request.request_id = request_id
        return self._sessions.WatchTurn(request, metadata=self._metadata)


class _Call(Protocol):
    def __iter__(self) -> Iterator[session_pb2.ExecuteResponse]: ...

    def cancel(self) -> bool: ...


class _Executed:
    """The responses of Execute, as those of WatchTurn."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    def __iter__(self) -> Iterator[session_pb2.WatchTurnResponse]:
        """Give them as they come."""
        for response in self._call:
            yield session_pb2.WatchTurnResponse(event=response)

    def cancel(self) -> bool:
        """End the call."""
        return self._call.cancel()
