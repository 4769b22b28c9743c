"""The client: one method for each call of the server, and `ask` for the whole of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Self, TypeVar

import grpc
from rlm.v1 import context_pb2, context_pb2_grpc, run_pb2, run_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

from rlm_client import errors
from rlm_client.connection import connect, find_key, find_target
from rlm_client.errors import RlmError, RunFailed
from rlm_client.money import Budget
from rlm_client.retry import Retry
from rlm_client.upload import Progress, measure
from rlm_client.watch import Stream, resumed

Request = TypeVar("Request")
Result = TypeVar("Result")

_UNARY_SECONDS = 30.0
_CANCEL_SECONDS = 120.0  # returns only when the whole tree has stopped


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run answered. `complete` is False where a limit ended it: then `text` is the best there was."""

    text: str
    run: run_pb2.Run

    @property
    def complete(self) -> bool:
        """Whether the run succeeded, rather than ran out of something; `run.reason` then names the limit."""
        return self.run.state == run_pb2.RUN_STATE_SUCCEEDED


class Client:
    """A connection to one rlm-server, safe to share between threads; a context manager that closes it.

    Where arguments are left out, the address is `RLM_SERVER` or 127.0.0.1:7400, and the key is `RLM_API_KEY` or, for a
    server on this machine, the one a development server wrote to its data directory. Calls that are safe to repeat are
    repeated as `retry` says while the server is unavailable; a watch reconnects as `watch_retry` says.

    Every method raises an RlmError subclass for what the server answers.

    Raises:
        Unauthenticated: no key was found.
        PlaintextRefused: the key would leave this machine unencrypted (see `connection.connect`).
    """

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        tls: bool = False,
        root_certificates: bytes | None = None,
        allow_plaintext: bool = False,
        retry: Retry | None = None,
        watch_retry: Retry | None = None,
    ) -> None:
        self.target = find_target(target)
        self._connection = connect(
            self.target,
            find_key(key, self.target),
            tls=tls,
            root_certificates=root_certificates,
            allow_plaintext=allow_plaintext,
        )
        self._metadata = self._connection.metadata
        self._retry = retry or Retry()
        self._watch_retry = watch_retry or Retry(attempts=10)
        self._contexts = context_pb2_grpc.ContextServiceStub(self._connection.channel)
        self._runs = run_pb2_grpc.RunServiceStub(self._connection.channel)
        self._sessions = session_pb2_grpc.SessionServiceStub(self._connection.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way end with Cancelled."""
        self._connection.channel.close()

    def upload(
        self, source: str | bytes | PathLike[str], name: str | None = None, progress: Progress | None = None
    ) -> context_pb2.Context:
        """Store one text. A `str` or bytes is the text itself; a path (`pathlib.Path`) names a file of UTF-8.

        The text is hashed first and then streamed in chunks of 1 MiB; a file is never loaded whole. The same text
        uploaded again is the same context, so a broken upload starts over by itself. `progress` is told the bytes sent
        and the bytes in all, from another thread.

        Raises:
            OSError: the file cannot be read.
            ValueError: the text is not UTF-8, or is a `str` that names an existing file, where a path was surely meant.
        """
        text = measure(source, name)
        reply = self._repeatable(
            lambda: self._contexts.UploadContext(text.parts(progress), metadata=self._metadata),
        )
        if progress is not None:
            progress(text.size_bytes, text.size_bytes)
        return reply.context

    def get_context(self, context_id: str) -> context_pb2.Context:
        """Describe a stored context."""
        request = context_pb2.GetContextRequest(context_id=context_id)
        return self._unary(self._contexts.GetContext, request).context

    def create_run(
        self,
        question: str,
        context_id: str = "",
        *,
        model: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        max_turns: int = 0,
        max_depth: int | None = None,
        wall_seconds: int = 0,
        image: str = "",
        request_id: str | None = None,
    ) -> run_pb2.Run:
        """Start a run, and return at once; it goes on whether or not anyone watches.

        What is left empty, 0 or None is the server's default. `max_turns` counts each node's turns, `max_depth` the
        levels of child RLMs below the root (0: none), `wall_seconds` the seconds of the whole run. `request_id` names
        this request: the same one again returns the same run. One is made up where none is given.

        Raises:
            BudgetRefused: the tenant cannot cover the budget.
            InvalidArgument: a limit is above the server's maximum, or a model or image is unknown.
        """
        request = run_pb2.CreateRunRequest(
            request_id=request_id or str(uuid.uuid4()),
            question=question,
            context_id=context_id,
            model=model,
            sub_model=sub_model,
            budget=_message(budget),
            limits=run_pb2.RunLimits(max_turns=max_turns, max_depth=max_depth, wall_seconds=wall_seconds),
            image=image,
        )
        return self._unary(self._runs.CreateRun, request).run

    def get_run(self, run_id: str) -> run_pb2.Run:
        """Give the run as it is now: its answer, what it spent, and its whole tree."""
        request = run_pb2.GetRunRequest(run_id=run_id)
        return self._unary(self._runs.GetRun, request).run

    def watch_run(self, run_id: str, from_sequence: int = 1) -> Iterator[run_pb2.RunEvent]:
        """Give every event of the run's tree from a number on, those to come included, until the run has ended.

        A broken connection is made again, and the watch goes on after the last event seen: none is given twice and
        none is missed.

        Raises:
            Unavailable: the server stayed away for as long as `watch_retry` allows without a single new event.
        """

        def open_at(sequence: int) -> Stream:
            request = run_pb2.WatchRunRequest(run_id=run_id, from_sequence=sequence)
            return self._runs.WatchRun(request, metadata=self._metadata)

        return resumed(open_at, from_sequence, self._watch_retry)

    def cancel_run(self, run_id: str) -> run_pb2.Run:
        """Stop a run and everything under it; returns when it has stopped. A run that has ended stays as it is."""
        request = run_pb2.CancelRunRequest(run_id=run_id)
        return self._repeatable(
            lambda: self._runs.CancelRun(request, timeout=_CANCEL_SECONDS, metadata=self._metadata)
        ).run

    def create_session(
        self,
        context_id: str = "",
        *,
        image: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        limits: types_pb2.SandboxLimits | None = None,
        request_id: str | None = None,
    ) -> session_pb2.Session:
        """Start a REPL with its own memory and account; a context given is its variable `context`.

        Raises:
            BudgetRefused: the tenant cannot cover the budget.
        """
        request = session_pb2.CreateSessionRequest(
            request_id=request_id or str(uuid.uuid4()),
            image=image,
            context_id=context_id,
            sub_model=sub_model,
            budget=_message(budget),
            limits=limits,
        )
        return self._unary(self._sessions.CreateSession, request).session

    def execute(
        self, session_id: str, code: str, *, request_id: str | None = None
    ) -> Iterator[session_pb2.ExecuteResponse]:
        """Run Python source as one turn, and give its output, calls and result as they come; the result is last.

        A connection that breaks midway is not resumed: the same call with the same `request_id` returns the first
        result, and runs nothing twice.
        """
        request = session_pb2.ExecuteRequest(
            request_id=request_id or str(uuid.uuid4()), session_id=session_id, code=code
        )
        call = self._sessions.Execute(request, metadata=self._metadata)
        try:
            with errors.typed():
                yield from call
        finally:
            call.cancel()

    def delete_session(self, session_id: str) -> types_pb2.Amounts:
        """End a session; gives what it spent in all."""
        request = session_pb2.DeleteSessionRequest(session_id=session_id)
        return self._unary(self._sessions.DeleteSession, request).spent

    def ask(
        self,
        question: str,
        text: str | bytes | PathLike[str],
        *,
        model: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        max_turns: int = 0,
        max_depth: int | None = None,
        wall_seconds: int = 0,
        image: str = "",
    ) -> Answer:
        """Upload a text, run a question over it, and wait for the answer. Arguments are those of `create_run`.

        Where waiting ends early, the run is cancelled: nobody else knows its name.

        Raises:
            RunFailed: the run failed or was cancelled.
        """
        run = self.create_run(
            question,
            self.upload(text).context_id,
            model=model,
            sub_model=sub_model,
            budget=budget,
            max_turns=max_turns,
            max_depth=max_depth,
            wall_seconds=wall_seconds,
            image=image,
        )
        try:
            ended = self._ended(run.run_id)
        except BaseException:
            with suppress(RlmError):
                self.cancel_run(run.run_id)
            raise
        if ended.state not in (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_EXHAUSTED):
            raise RunFailed(ended)
        return Answer(ended.answer, ended)

    def _ended(self, run_id: str) -> run_pb2.Run:
        for _ in self.watch_run(run_id):
            pass
        return self.get_run(run_id)

    def _unary(self, method: grpc.UnaryUnaryMultiCallable[Request, Result], request: Request) -> Result:
        return self._repeatable(lambda: method(request, timeout=_UNARY_SECONDS, metadata=self._metadata))

    def _repeatable(self, call: Callable[[], Result]) -> Result:
        return self._retry.call(errors.typed()(call))


def _message(budget: Budget | None) -> types_pb2.Budget | None:
    return None if budget is None else budget.message()
