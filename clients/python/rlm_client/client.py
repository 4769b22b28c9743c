"""The client: one method for each call of the server, and `ask` for the whole of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from rlm.v1 import (
    context_pb2,
    context_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    types_pb2,
)

from rlm_client import errors
from rlm_client.archive import ArchiveLimits
from rlm_client.asked import STRATEGIES, AnswerSchema, Guards, Sampling, Strategy, sampling_message, written
from rlm_client.caller import UNARY_SECONDS
from rlm_client.connection import connect, find_key, find_target
from rlm_client.durations import seconds, stamp
from rlm_client.errors import RlmError, RunFailed
from rlm_client.money import Budget
from rlm_client.pages import pages
from rlm_client.retry import Retry, named
from rlm_client.session_calls import SessionCalls
from rlm_client.source import FileOptions, Source, material
from rlm_client.spending import Spending
from rlm_client.tools import Answering, AnyTool, tools_of, unanswered
from rlm_client.transfer import Progress, Status, Transfer
from rlm_client.upload import measure
from rlm_client.watch import Stream, resumed

_CANCEL_SECONDS = 120.0  # returns only when the whole tree has stopped
_MAX_READ = 262_144  # characters that one ReadContext gives
_DOCUMENTS_PAGE = 10_000  # the most that one ListDocuments gives


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run answered. `complete` is False where a limit ended it: then `text` is the best there was."""

    text: str
    run: run_pb2.Run

    @property
    def value(self) -> Any:
        """The answer of a run with an `answer_schema`, read as JSON; None where it has none."""
        return json.loads(self.text) if self.text else None

    @property
    def complete(self) -> bool:
        """Whether the run succeeded, rather than ran out of something; `run.end_reason` then names the limit."""
        return self.run.state == run_pb2.RUN_STATE_SUCCEEDED


class Client(SessionCalls, Spending):
    """A connection to one rlm-server, safe to share between threads; a context manager that closes it.

    Where arguments are left out, the address is `RLM_SERVER` or 127.0.0.1:7400, and the key is `RLM_API_KEY` or, for a
    server on this machine, the one a development server wrote to its data directory. Calls that are safe to repeat are
    repeated as `retry` says while the server is unavailable; a watch or an upload that breaks is taken up again as
    `watch_retry` says.

    Every method raises an RlmError subclass for what the server answers.

    Raises:
        NoKey: no key was found.
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
        connection = connect(
            self.target,
            find_key(key, self.target),
            tls=tls,
            root_certificates=root_certificates,
            allow_plaintext=allow_plaintext,
        )
        super().__init__(connection, retry, watch_retry)
        self._contexts = context_pb2_grpc.ContextServiceStub(connection.channel)
        self._runs = run_pb2_grpc.RunServiceStub(connection.channel)
        self._server = server_pb2_grpc.ServerServiceStub(connection.channel)

    def upload(
        self,
        source: Source,
        name: str | None = None,
        progress: Progress | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        text_field: str = "text",
        name_field: str | None = None,
        skip_binary: bool = False,
        on_skip: Callable[[str], None] | None = None,
        archive_limits: ArchiveLimits | None = None,
    ) -> context_pb2.Context:
        """Store one text, or documents in their order, and give the context they make.

        One text: a `str` or bytes is the text itself; a path (`pathlib.Path`) names a file of UTF-8.

        Documents, with their names:
        - the path of a directory: every file below it, sorted, named by its path in there; hidden ones and links are
          left out;
        - the path of a .zip archive: likewise every file in it, within `archive_limits`; nothing is unpacked to disk;
        - the path of a .jsonl file: every line, a JSON string or an object with the text in `text_field`, named by
          its `name_field`, or else by `name`, `id` or the line's number;
        - a mapping from names to texts;
        - an iterable of paths and (name, text) pairs. Files are named by their places below the deepest directory that
          all the paths have in common. An iterator is read into a list; all else is never whole in memory.

        A file that is not UTF-8 is an error; `skip_binary` leaves it out of a sequence of documents instead, and tells
        `on_skip` where it is. `name` is for show; without one it is made from the paths. Contexts can be listed
        by their `labels`.

        Everything is read twice: for sizes and SHA-256 first. Every upload is a context of its own. An upload that
        breaks off goes on, as `watch_retry` says, from where the server has it; with a `request_id` of the caller's own
        also one that another process began with the same source. `progress` is told the bytes that the server has and
        the bytes in all.

        Raises:
            AlreadyExists: the request id is that of an upload of something else.
            OSError: a file cannot be read.
            SourceChanged: a source changed after it was first read.
            SourceRefused: something is not UTF-8, not what its name says, or beyond a limit; the message names it.
            TypeError: the source, or an item of it, is nothing of the above.
            ValueError: it is a `str` that names an existing file, where a path was surely meant.
        """
        reading = FileOptions(text_field, name_field, archive_limits or ArchiveLimits(), skip_binary, on_skip)
        upload = measure(material(source, name, reading), named(request_id), reading, labels)
        transfer = Transfer(
            lambda messages: self._contexts.UploadContext.future(messages, metadata=self._metadata),
            self._upload_status,
            self._watch_retry,
            progress,
        )
        return transfer.upload(upload, begun=request_id is not None)

    def _upload_status(self, request_id: str) -> Status:
        request = context_pb2.GetUploadStatusRequest(request_id=request_id)
        with errors.typed():
            return self._contexts.GetUploadStatus(request, timeout=UNARY_SECONDS, metadata=self._metadata)

    def get_context(self, context_id: str) -> context_pb2.Context:
        """Describe a stored context."""
        request = context_pb2.GetContextRequest(context_id=context_id)
        return self._unary(self._contexts.GetContext, request).context

    def list_contexts(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        name: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[context_pb2.Context]:
        """Give your contexts, the newest first, asking for more as they are taken.

        They have all `labels` and exactly this name, and were made at `since` or later and before `until`. What is left
        out is not asked for. A time without a zone is UTC.
        """
        request = context_pb2.ListContextsRequest(labels=labels, name=name, since=stamp(since), until=stamp(until))
        for page in pages(partial(self._unary, self._contexts.ListContexts), request):
            yield from page.contexts

    def list_documents(self, context_id: str) -> Iterator[context_pb2.Document]:
        """Give the documents of a context in their order, asking for more as they are taken."""
        request = context_pb2.ListDocumentsRequest(context_id=context_id, page_size=_DOCUMENTS_PAGE)
        for page in pages(partial(self._unary, self._contexts.ListDocuments), request):
            yield from page.documents

    def read_context(self, context_id: str, start: int = 0, end: int | None = None, document: int = 0) -> str:
        """Give characters of a document: from `start` up to, and without, `end`; None, or past its end, means its end.

        `document` is its place in the context, 0 where the context is one text. Long ranges are asked for in parts.
        """
        parts = []
        while True:
            upto = start + _MAX_READ if end is None else min(start + _MAX_READ, end)
            request = context_pb2.ReadContextRequest(context_id=context_id, document=document, start=start, end=upto)
            reply = self._unary(self._contexts.ReadContext, request)
            parts.append(reply.text)
            start += len(reply.text)
            if not reply.text or start >= reply.character_count or start == end:
                return "".join(parts)

    def search_context(
        self, context_id: str, pattern: str, documents: Iterable[int] = (), limit: int = 100, page_token: str = ""
    ) -> context_pb2.SearchContextResponse:
        """Find where a pattern in RE2's syntax matches: `matches` in the order of the text.

        Only the documents at the places given are searched; all where none is given. At most `limit` matches come, and
        never more than 1,000. Those after them come with the answer's `next_page_token`, which is empty where there are
        none.
        """
        request = context_pb2.SearchContextRequest(
            context_id=context_id, pattern=pattern, documents=documents, page_size=limit, page_token=page_token
        )
        return self._unary(self._contexts.SearchContext, request)

    def update_context(
        self,
        context_id: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> context_pb2.Context:
        """Change a context's name, or all of its labels, or both; what is None stays as it is.

        Raises:
            NotFound: there is no such context.
        """
        paths = [path for path, new in (("name", name), ("labels", labels)) if new is not None]
        request = context_pb2.UpdateContextRequest(
            context=context_pb2.Context(context_id=context_id, name=name or "", labels=labels),
            update_mask=FieldMask(paths=paths),
            request_id=named(request_id),
        )
        return self._unary(self._contexts.UpdateContext, request).context

    def delete_context(self, context_id: str, *, request_id: str | None = None) -> None:
        """Take a context away from everybody; sessions and runs that read it already keep it until they end."""
        request = context_pb2.DeleteContextRequest(context_id=context_id, request_id=named(request_id))
        self._unary(self._contexts.DeleteContext, request)

    def create_run(
        self,
        question: str,
        context_id: str = "",
        *,
        model: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        max_turns: int | None = None,
        max_depth: int | None = None,
        wall_seconds: float | None = None,
        answer_schema: AnswerSchema | None = None,
        answer_attempts: int | None = None,
        instructions: str = "",
        sampling: Sampling | None = None,
        strategy: Strategy = "rlm",
        guards: Guards | None = None,
        image: str = "",
        account_id: str = "",
        labels: Mapping[str, str] | None = None,
        tools: Iterable[AnyTool] = (),
        deployment_tools: Iterable[str] = (),
        continue_run_id: str = "",
        request_id: str | None = None,
    ) -> run_pb2.Run:
        """Start a run, and return at once; it goes on whether or not anyone watches.

        What is left empty or None is the server's default. `max_turns` counts each node's turns, `max_depth` the
        levels of child RLMs below the root (0: none), `wall_seconds` the seconds of the whole run. With an
        `answer_schema` the answer is JSON that it takes; after `answer_attempts` answers that are not, the run ends.
        `instructions` say how to answer, and `sampling` how models are to write. With the `strategy` "direct" the root
        model is sent the whole text, which must fit into its window, and with "auto" where that fits comfortably.
        `guards` end a run sooner that makes no progress. `tools` are functions that its code may call: see
        `answer_tools`. `deployment_tools` are names of those that the server itself answers. With a `continue_run_id`
        the question is a further one: the conversation, the variables and the context of that run are there.
        `account_id` is the customer who pays. `request_id` names this request: the same one again returns the same
        run. One is made up where none is given.

        Raises:
            BudgetRefused: the tenant, or its customer, cannot cover the budget.
            InvalidArgument: a limit is above the server's maximum, a model or image is unknown, the schema is none, a
                model does not take the sampling, or the text does not fit where it is to be answered directly.
            NotFound: there is no such context or customer.
            TypeError: a function cannot be a tool; see `tool`.
        """
        request = run_pb2.CreateRunRequest(
            request_id=named(request_id),
            question=question,
            context_id=context_id,
            model=model,
            sub_model=sub_model,
            budget=_message(budget),
            limits=_limits(guards, max_turns, max_depth, answer_attempts, wall_seconds),
            answer_schema=written(answer_schema),
            instructions=instructions,
            sampling=sampling_message(sampling),
            strategy=STRATEGIES[strategy],
            image=image,
            account_id=account_id,
            labels=labels,
            tools=[one.message() for one in tools_of(tools)],
            deployment_tools=deployment_tools,
            continue_run_id=continue_run_id,
        )
        return self._unary(self._runs.CreateRun, request).run

    def complete(
        self,
        question: str,
        text: str = "",
        *,
        context_id: str = "",
        model: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        max_turns: int | None = None,
        max_depth: int | None = None,
        answer_schema: AnswerSchema | None = None,
        answer_attempts: int | None = None,
        instructions: str = "",
        sampling: Sampling | None = None,
        strategy: Strategy = "rlm",
        guards: Guards | None = None,
        image: str = "",
        account_id: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout: float = 300.0,
    ) -> Answer:
        """Ask a question over a text of at most 1,000,000 bytes, in one call, and give the answer.

        The text is stored nowhere after that. `timeout` is in seconds, of the whole call; the run ends before, with the
        best answer that it has. Where waiting ends early, the run is stopped. The other arguments are those of
        `create_run`.

        Raises:
            BudgetRefused: the tenant, or its customer, cannot cover the budget.
            InvalidArgument: the text is too long, or another field is wrong; `violations` names all.
            RunFailed: the run failed or was cancelled.
        """
        request = run_pb2.CompleteRequest(
            request_id=named(request_id),
            question=question,
            text=text,
            context_id=context_id,
            model=model,
            sub_model=sub_model,
            budget=_message(budget),
            limits=_limits(guards, max_turns, max_depth, answer_attempts),
            answer_schema=written(answer_schema),
            instructions=instructions,
            sampling=sampling_message(sampling),
            strategy=STRATEGIES[strategy],
            image=image,
            account_id=account_id,
            labels=labels,
        )
        return self._answer(self._unary(self._runs.Complete, request, timeout).run)

    def list_runs(
        self,
        *,
        states: Iterable[run_pb2.RunState.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        account_id: str = "",
    ) -> Iterator[run_pb2.Run]:
        """Give your runs, the newest first, asking for more as they are taken: of each the beginning of its texts.

        They are in one of `states`, have all `labels`, were made at `since` or later and before `until`, and are paid
        for by the account. What is left out is not asked for. A time without a zone is UTC.
        """
        request = run_pb2.ListRunsRequest(
            states=states, labels=labels, since=stamp(since), until=stamp(until), account_id=account_id
        )
        for page in pages(partial(self._unary, self._runs.ListRuns), request):
            yield from page.runs

    def get_run(self, run_id: str) -> run_pb2.Run:
        """Give the run as it is now: what it spent, and its answer, or the first 64 KiB of that: see `whole_answer`."""
        request = run_pb2.GetRunRequest(run_id=run_id)
        return self._unary(self._runs.GetRun, request).run

    def list_nodes(self, run_id: str) -> Iterator[run_pb2.Node]:
        """Give the nodes of the run's tree, the root first, asking for more as they are taken."""
        request = run_pb2.ListNodesRequest(run_id=run_id)
        for page in pages(partial(self._unary, self._runs.ListNodes), request):
            yield from page.nodes

    def list_run_events(self, run_id: str, from_sequence: int = 1) -> Iterator[run_pb2.RunEvent]:
        """Give what has happened in the run's tree so far, from a number on, asking for more as it is taken."""
        request = run_pb2.ListRunEventsRequest(run_id=run_id, from_sequence=from_sequence)
        for page in pages(partial(self._unary, self._runs.ListRunEvents), request):
            yield from page.events

    def read_answer(self, run_id: str, node_id: str = "") -> Iterator[str]:
        """Give the whole answer of a run, or of one of its nodes, part by part, however long it is."""
        request = run_pb2.ReadAnswerRequest(run_id=run_id, node_id=node_id)
        for part in self._streamed(self._runs.ReadAnswer, request):
            yield part.text

    def whole_answer(self, run: run_pb2.Run) -> str:
        """Give the answer of a run that was asked for, and read it where the run has only its beginning."""
        return "".join(self.read_answer(run.run_id)) if any(cut.field == "answer" for cut in run.cut) else run.answer

    def watch_run(self, run_id: str, from_sequence: int = 1) -> Iterator[run_pb2.RunEvent]:
        """Give every event of the run's tree from a number on, those to come included, until the run has ended.

        A broken connection is made again, and the watch goes on after the last event seen: none is given twice and
        none is missed.

        Raises:
            Unavailable: the server stayed away for as long as `watch_retry` allows without a single new event.
        """

        def open_at(sequence: int) -> Stream[run_pb2.RunEvent]:
            request = run_pb2.WatchRunRequest(run_id=run_id, from_sequence=sequence)
            return self._runs.WatchRun(request, metadata=self._metadata)

        return resumed(open_at, from_sequence, self._watch_retry)

    def answer_tools(self, run_id: str, tools: Iterable[AnyTool]) -> None:
        """Answer the calls that a run makes of these tools, until it has ended: each by calling its function.

        What a function raises becomes the call's error. Calls that were made before and have no answer are answered,
        too, so that another process can take this up. Calls of other tools are left to others.

        Raises:
            Unavailable: the server stayed away for as long as `watch_retry` allows.
            TypeError: a function cannot be a tool; see `tool`.
        """

        def submit(run_id: str, call_id: str, result: object = None, *, error: str = "") -> None:
            name = named()  # the server may be away for as long as a watch waits for it
            self._watch_retry.call(lambda: self.submit_result(run_id, call_id, result, error=error, request_id=name))

        with Answering(run_id, tools_of(tools), submit) as answering:
            waiting, last = unanswered(self.list_run_events(run_id))
            for event in waiting:
                answering.heed(event)
            for event in self.watch_run(run_id, last + 1):
                answering.heed(event)

    def submit_result(
        self, run_id: str, call_id: str, result: object = None, *, error: str = "", request_id: str | None = None
    ) -> None:
        """Answer a call of a tool that the run's event `tool_call_requested` told.

        `result` is what the tool returns: JSON, as Python has it. Where the tool failed, `error` says why instead, in
        at most 2,000 characters.

        Raises:
            AlreadyExists: the call has another answer already.
            FailedPrecondition: the call is no longer waited for.
            InvalidArgument: the result is larger than it may be.
            NotFound: there is no such run, or it made no such call.
            TypeError, ValueError: the result is no JSON.
        """
        request = run_pb2.SubmitResultRequest(run_id=run_id, call_id=call_id, request_id=named(request_id))
        if error:
            request.error = error
        else:
            request.result_json = json.dumps(result, ensure_ascii=False, allow_nan=False)
        self._unary(self._runs.SubmitResult, request)

    def submit_reply(
        self,
        run_id: str,
        call_id: str,
        text: str,
        *,
        end: run_pb2.ReplyEnd.ValueType = run_pb2.REPLY_END_COMPLETE,
        input_tokens: int = 0,
        output_tokens: int = 0,
        request_id: str | None = None,
    ) -> None:
        """Answer a call of the model `client` that the run's event `model_call_requested` told.

        `end` says how the text ends. Tokens count in the run's budget, as many as you say. Where there is no answer,
        `submit_result` with an `error` says why. It raises as that does.
        """
        request = run_pb2.SubmitResultRequest(
            run_id=run_id,
            call_id=call_id,
            model=run_pb2.ModelResult(
                text=text, end=end, input_token_count=input_tokens, output_token_count=output_tokens
            ),
            request_id=named(request_id),
        )
        self._unary(self._runs.SubmitResult, request)

    def cancel_run(self, run_id: str, *, request_id: str | None = None) -> run_pb2.Run:
        """Stop a run and everything under it; returns when it has stopped. A run that has ended stays as it is."""
        request = run_pb2.CancelRunRequest(run_id=run_id, request_id=named(request_id))
        return self._unary(self._runs.CancelRun, request, _CANCEL_SECONDS).run

    def delete_run(self, run_id: str, *, request_id: str | None = None) -> None:
        """Forget a run that has ended, with its answer and its events. What it spent stays in the ledger."""
        request = run_pb2.DeleteRunRequest(run_id=run_id, request_id=named(request_id))
        self._unary(self._runs.DeleteRun, request)

    def get_server_info(self) -> server_pb2.GetServerInfoResponse:
        """Give the server's version, what it can do, and what your requests may ask for at most."""
        return self._unary(self._server.GetServerInfo, server_pb2.GetServerInfoRequest())

    def list_models(self) -> Iterator[server_pb2.Model]:
        """Give the models on offer with their prices, in the order of their names."""
        for page in pages(partial(self._unary, self._server.ListModels), server_pb2.ListModelsRequest()):
            yield from page.models

    def list_images(self) -> list[server_pb2.Image]:
        """Give the golden images that REPLs start from, the default one first."""
        return list(self._unary(self._server.ListImages, server_pb2.ListImagesRequest()).images)

    def get_quota(self) -> list[server_pb2.Quota]:
        """Give what your tenant may have of the server at once, and what of it is in use."""
        return list(self._unary(self._server.GetQuota, server_pb2.GetQuotaRequest()).quotas)

    def ask(
        self,
        question: str,
        source: Source,
        *,
        model: str = "",
        sub_model: str = "",
        budget: Budget | None = None,
        max_turns: int | None = None,
        max_depth: int | None = None,
        wall_seconds: float | None = None,
        answer_schema: AnswerSchema | None = None,
        answer_attempts: int | None = None,
        instructions: str = "",
        sampling: Sampling | None = None,
        strategy: Strategy = "rlm",
        guards: Guards | None = None,
        image: str = "",
        tools: Iterable[AnyTool] = (),
        deployment_tools: Iterable[str] = (),
    ) -> Answer:
        """Upload a text or documents, run a question over them, and wait for the answer.

        Arguments are those of `upload` and of `create_run`. Calls of `tools` are answered meanwhile: `answer_tools`.

        Where waiting ends early, the run is cancelled: nobody else knows its name.

        Raises:
            RunFailed: the run failed or was cancelled.
        """
        offered = tools_of(tools)
        run = self.create_run(
            question,
            self.upload(source).context_id,
            model=model,
            sub_model=sub_model,
            budget=budget,
            max_turns=max_turns,
            max_depth=max_depth,
            wall_seconds=wall_seconds,
            answer_schema=answer_schema,
            answer_attempts=answer_attempts,
            instructions=instructions,
            sampling=sampling,
            strategy=strategy,
            guards=guards,
            image=image,
            tools=offered,
            deployment_tools=deployment_tools,
        )
        try:
            if offered:
                self.answer_tools(run.run_id, offered)
            ended = self._ended(run.run_id)
        except BaseException:
            with suppress(RlmError):
                self.cancel_run(run.run_id)
            raise
        return self._answer(ended)

    def _answer(self, ended: run_pb2.Run) -> Answer:
        if ended.state not in (run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_EXHAUSTED):
            raise RunFailed(ended)
        return Answer(self.whole_answer(ended), ended)

    def _ended(self, run_id: str) -> run_pb2.Run:
        for _ in self.watch_run(run_id):
            pass
        return self.get_run(run_id)


def _limits(
    guards: Guards | None,
    max_turns: int | None,
    max_depth: int | None,
    answer_attempts: int | None,
    wall_seconds: float | None = None,
) -> run_pb2.RunLimits:
    limits = run_pb2.RunLimits(
        max_turn_count=max_turns,
        max_depth=max_depth,
        wall_time=None if wall_seconds is None else seconds(wall_seconds),
        answer_attempt_count=answer_attempts,
    )
    limits.MergeFrom((guards or Guards()).message())
    return limits


def _message(budget: Budget | None) -> types_pb2.Budget | None:
    return None if budget is None else budget.message()
