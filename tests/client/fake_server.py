"""A server in this process that answers from what a test put into it, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from rlm.v1 import context_pb2, context_pb2_grpc, run_pb2, run_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

from tests.client.fake_contexts import refusal, refuse
from tests.client.fake_snapshots import FakeSnapshots

KEY = "rlm_a-key-that-must-not-show"
ESCAPE = "\x1b[2J"
"""What clears a terminal."""


class FakeServer(FakeSnapshots, run_pb2_grpc.RunServiceServicer):
    """Every call answers the next of `refusals[call]` where there is one, else what the fields say."""

    def __init__(self) -> None:
        super().__init__()
        self.target = ""
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.refusals: dict[str, deque[status_pb2.Status]] = defaultdict(deque)
        self.run = run_pb2.Run(run_id="run-1", state=run_pb2.RUN_STATE_SUCCEEDED, answer="42")
        self.nodes: list[run_pb2.Node] = []
        self.answer_parts: list[str] = []
        self.events: list[run_pb2.RunEvent] = []
        self.breaks_after: deque[int] = deque()
        """The sequence numbers after which the next watches break."""
        self.resends = 0
        """How many events before the one asked for each watch sends again."""
        self.holds = False
        """Whether watches and executions go on until the run is cancelled or the session deleted."""
        self.holds_creation = False
        """Whether a run is created only when `create` is set."""
        self.creating = threading.Event()
        self.create = threading.Event()
        self.cancelled = threading.Event()
        self.watched = threading.Event()
        self.responses: list[session_pb2.ExecuteResponse] = []

    def tell_beginning_of(self, answer_parts: list[str]) -> None:
        """Give the run an answer of which it, and the event, tell the first part alone."""
        self.answer_parts = answer_parts
        size = len("".join(answer_parts).encode())
        self.run.answer = answer_parts[0]
        self.run.cut.add(field="answer", size_bytes=size)
        (told,) = (event for event in self.events if event.WhichOneof("body") == "answer")
        told.answer.text = answer_parts[0]
        told.cut.add(field="text", size_bytes=size)

    def asked(self, kind: type[Message]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def enter(self, call: str, request: Message | None, context: grpc.ServicerContext) -> None:
        self.metadata.append({str(key): value for key, value in context.invocation_metadata()})
        if request is not None:
            self.requests.append(request)
        if self.refusals[call]:
            refuse(context, self.refusals[call].popleft())

    def received(self, request: context_pb2.UploadContextRequest) -> None:
        self.requests.append(request)

    def CreateRun(self, request: run_pb2.CreateRunRequest, context: grpc.ServicerContext) -> run_pb2.CreateRunResponse:
        self.enter("CreateRun", request, context)
        self.creating.set()
        if self.holds_creation:
            self.create.wait(60)
        return run_pb2.CreateRunResponse(run=run_pb2.Run(run_id="run-1", state=run_pb2.RUN_STATE_PENDING))

    def Complete(self, request: run_pb2.CompleteRequest, context: grpc.ServicerContext) -> run_pb2.CompleteResponse:
        self.enter("Complete", request, context)
        return run_pb2.CompleteResponse(run=self.run)

    def GetRun(self, request: run_pb2.GetRunRequest, context: grpc.ServicerContext) -> run_pb2.GetRunResponse:
        self.enter("GetRun", request, context)
        return run_pb2.GetRunResponse(run=self.run)

    def ListNodes(self, request: run_pb2.ListNodesRequest, context: grpc.ServicerContext) -> run_pb2.ListNodesResponse:
        self.enter("ListNodes", request, context)
        return run_pb2.ListNodesResponse(nodes=self.nodes)

    def ListRunEvents(
        self, request: run_pb2.ListRunEventsRequest, context: grpc.ServicerContext
    ) -> run_pb2.ListRunEventsResponse:
        self.enter("ListRunEvents", request, context)
        return run_pb2.ListRunEventsResponse(events=self.events)

    def ReadAnswer(
        self, request: run_pb2.ReadAnswerRequest, context: grpc.ServicerContext
    ) -> Iterator[run_pb2.ReadAnswerResponse]:
        self.enter("ReadAnswer", request, context)
        for part in self.answer_parts:
            yield run_pb2.ReadAnswerResponse(text=part)

    def WatchRun(
        self, request: run_pb2.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[run_pb2.WatchRunResponse]:
        self.enter("WatchRun", request, context)
        last = self.breaks_after.popleft() if self.breaks_after else None
        for event in self.events:
            if last is not None and event.sequence > last:
                break
            if event.sequence >= request.from_sequence - self.resends:
                yield run_pb2.WatchRunResponse(event=event)
        if last is not None:
            refuse(context, refusal(grpc.StatusCode.UNAVAILABLE, "the server is going away"))
        self.watched.set()
        if self.holds:
            self.cancelled.wait(60)

    def ListRuns(self, request: run_pb2.ListRunsRequest, context: grpc.ServicerContext) -> run_pb2.ListRunsResponse:
        self.enter("ListRuns", request, context)
        return run_pb2.ListRunsResponse(runs=[self.run])

    def SubmitResult(
        self, request: run_pb2.SubmitResultRequest, context: grpc.ServicerContext
    ) -> run_pb2.SubmitResultResponse:
        self.enter("SubmitResult", request, context)
        return run_pb2.SubmitResultResponse()

    def CancelRun(self, request: run_pb2.CancelRunRequest, context: grpc.ServicerContext) -> run_pb2.CancelRunResponse:
        self.enter("CancelRun", request, context)
        self.run.state = run_pb2.RUN_STATE_CANCELLED
        self.cancelled.set()
        return run_pb2.CancelRunResponse(run=self.run)

    def DeleteRun(self, request: run_pb2.DeleteRunRequest, context: grpc.ServicerContext) -> run_pb2.DeleteRunResponse:
        self.enter("DeleteRun", request, context)
        return run_pb2.DeleteRunResponse()

    def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.CreateSessionResponse:
        self.enter("CreateSession", request, context)
        return session_pb2.CreateSessionResponse(session=session_pb2.Session(session_id="session-1"))

    def Execute(
        self, request: session_pb2.ExecuteRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.ExecuteResponse]:
        self.enter("Execute", request, context)
        yield from self._turn(0, context) if request.detached else self.responses
        self.watched.set()
        if self.holds:
            self.cancelled.wait(60)

    def GetSession(
        self, request: session_pb2.GetSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.GetSessionResponse:
        self.enter("GetSession", request, context)
        coverage = context_pb2.Coverage(fraction=0.5, document_count=1)
        session = session_pb2.Session(session_id=request.session_id, coverage=coverage)
        return session_pb2.GetSessionResponse(session=session)

    def _turn(self, from_sequence: int, context: grpc.ServicerContext) -> Iterator[session_pb2.ExecuteResponse]:
        """Tell what happens in a turn, as far as it does not break."""
        last = self.breaks_after.popleft() if self.breaks_after else None
        for response in self.responses:
            if last is not None and response.sequence > last:
                refuse(context, refusal(grpc.StatusCode.UNAVAILABLE, "the server is going away"))
            if response.sequence == 0 or response.sequence >= from_sequence:
                yield response

    def WatchTurn(
        self, request: session_pb2.WatchTurnRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.WatchTurnResponse]:
        self.enter("WatchTurn", request, context)
        for response in self._turn(request.from_sequence, context):
            yield session_pb2.WatchTurnResponse(event=response)

    def ExecuteOnce(
        self, request: session_pb2.ExecuteOnceRequest, context: grpc.ServicerContext
    ) -> session_pb2.ExecuteOnceResponse:
        self.enter("ExecuteOnce", request, context)
        result = session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK)
        return session_pb2.ExecuteOnceResponse(stdout="2\n", result=result)

    def InterruptSession(
        self, request: session_pb2.InterruptSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.InterruptSessionResponse:
        self.enter("InterruptSession", request, context)
        return session_pb2.InterruptSessionResponse(interrupted=not request.turn_id)

    def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: grpc.ServicerContext
    ) -> session_pb2.ListSessionsResponse:
        self.enter("ListSessions", request, context)
        number = len(request.page_token) + 1
        session = session_pb2.Session(
            session_id=f"session-{number}",
            image="core",
            state=session_pb2.SESSION_STATE_ACTIVE,
            labels={"team": f"red {ESCAPE}"},
            turn_count=number,
        )
        return session_pb2.ListSessionsResponse(sessions=[session], next_page_token="x" * number if number < 3 else "")

    def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.UpdateSessionResponse:
        self.enter("UpdateSession", request, context)
        return session_pb2.UpdateSessionResponse(session=request.session)

    def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.DeleteSessionResponse:
        self.enter("DeleteSession", request, context)
        self.cancelled.set()
        return session_pb2.DeleteSessionResponse(spent=types_pb2.Amounts(nano_usd=7))


@contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeServer]:
    """Serve on a loopback port, with TLS where credentials are given."""
    fake = FakeServer()
    with ThreadPoolExecutor(max_workers=8) as threads:
        server = grpc.server(threads)
        context_pb2_grpc.add_ContextServiceServicer_to_server(fake, server)
        run_pb2_grpc.add_RunServiceServicer_to_server(fake, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(fake, server)
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        fake.target = f"127.0.0.1:{port}"
        server.start()
        try:
            yield fake
        finally:
            fake.cancelled.set()
            server.stop(grace=None).wait()
