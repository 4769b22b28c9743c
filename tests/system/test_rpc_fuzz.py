"""Whatever is sent to whichever call, the server answers in its own words, and nothing in it breaks or grows."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rlm.v1 import session_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.tenants.terms import OwnTerms
from tests.servers import Served, Server
from tests.system.context_calls import of_documents, of_text
from tests.system.hostile_messages import Hostile, field_names, methods
from tests.system.stage import Caller, Play, code
from tests.system.test_customers import Keeper
from tests.system.test_sessions_kept import exported

CASES = int(os.environ.get("RLM_FUZZ_CASES", "1500"))
SEED = int(os.environ.get("RLM_FUZZ_SEED", "11"))
LONGEST = 10.0
"""Seconds after which a call that goes on is left, as one that watches or loops may be."""
READ = 30
"""Messages read of a stream before it is left."""
TRAILERS = 8 << 10
CLIENTS_OWN = "Internal error from Core"
"""What the client says by itself where the server ended a stream to which it was still writing."""
OF_GRPC = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""What a client's own leaving is told as."""
REASONS = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
RENEWED = 40
"""Cases from one making of things to the next."""
OF_A_TENANT = 10_000
"""Cases of one tenant: what they make is counted, and not to be refused for being too much."""
COLLECTED = 50
"""Cases from one collection of garbage to the next."""
REACHED = 0.9
"""The least part of all calls that are answered at least once: most of what is sent is to come far."""
GROWTH = 200 << 20
"""Bytes of memory by which this process, client and server, may grow."""


def _untyped(caller: Caller) -> Any:
    """Return the channel, which takes bytes for messages."""
    return caller.channel


async def call(caller: Caller, method: MethodDescriptor, sent: list[bytes]) -> None:
    """Send bytes to a method and read what comes, up to a point."""
    path, channel = f"/{method.containing_service.full_name}/{method.name}", _untyped(caller)
    options: dict[str, Any] = {"metadata": caller.metadata, "timeout": LONGEST}
    if method.client_streaming:
        await channel.stream_unary(path)(iter(sent), **options)
    elif method.server_streaming:
        stream = channel.unary_stream(path)(sent[0], **options)
        for _ in range(READ):
            if await stream.read() is grpc.aio.EOF:
                return
        stream.cancel()
    else:
        await channel.unary_unary(path)(sent[0], **options)


def wrong_with(error: grpc.aio.AioRpcError) -> str:
    """Say what is wrong with a refusal; empty where nothing is."""
    if error.code() in OF_GRPC or (error.details() or "").startswith(CLIENTS_OWN):
        return ""
    if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
        return f"{error.code()}: {error.details()}"
    size = sum(len(name) + len(value) for name, value in error.trailing_metadata() or ())
    if size >= TRAILERS:
        return f"{size} bytes of trailers"
    status: Any = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    if status is None or not status.details or not status.details[0].Unpack(info):
        return f"no ErrorInfo: {error.code()}: {error.details()}"
    return "" if info.domain == "rlm-server" and info.reason in REASONS else f"an unknown reason {info.reason}"


async def things(served: Server, caller: Caller, number: int) -> dict[str, str]:
    """Make one of everything, and return their names by kind: every other context is of documents.

    The key is that of a tenant which is made for it, and may be deleted.
    """
    text = f"{number} is some text, and more of it\n"
    sent = of_documents([(str(n), text * n) for n in range(5)]) if number // RENEWED % 2 else of_text(text * 200)
    context = (await caller.send_parts(sent)).context_id
    session = await caller.open_session(context_id=context)
    made = await caller.ask(context_id=context)
    turn = session_pb2.ExecuteRequest(session_id=session, code="1", detached=True, request_id="request 0")
    told = [one async for one in caller.sessions.Execute(turn, metadata=caller.metadata)]
    asked = session_pb2.CreateSnapshotRequest(session_id=session)
    snapshot = (await caller.sessions.CreateSnapshot(asked, metadata=caller.metadata)).snapshot
    account, tenant = f"customer-{number}", f"spare-{context.rpartition('_')[2]}"
    await Keeper(caller).create(account)
    await served.running.tenants.create(tenant, OwnTerms(), {})
    key, _ = await served.running.keys.create(tenant)
    return {
        "context": context,
        "session": session,
        "run": made.run.run_id,
        "node": made.nodes[-1].node_id,
        "turn": told[0].accepted.turn_id,
        "snapshot": snapshot.snapshot_id,
        "account": account,
        "tenant": tenant,
        "key": key.id,
    }


def memory() -> int:
    """Return the bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_may_be_right_is_said_of_fields_that_there_are() -> None:
    known = set().union(*(field_names(method.input_type) for method in methods()))
    hostile = Hostile(random.Random(SEED), {})
    assert (hostile.plausible.keys() | hostile.entries.keys()) - known == set()
    assert {name for name in known if name.endswith("_id")} - hostile.plausible.keys() == set()


async def test_no_request_whatever_it_holds_ends_in_an_internal_error_or_a_traceback(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, calls = random.Random(SEED), methods()
    faults, answered = list[str](), set[str]()
    play, hosts = Play(code("rlm_query('x')"), code("FINAL(1)"), x=code("FINAL(2)")), ["http://127.0.0.1:9"]
    async with server(play, webhook_hosts=hosts, grace_seconds=0.1) as served:
        other = await served.tenant("other")
        others, known = await things(served, other, 0), dict[str, list[str]]()
        files = [(await exported(other, others["snapshot"]))[1]]
        hostile = Hostile(chosen, known, files)
        _, secret = await served.running.keys.create(None)
        operator = served.another(secret)
        for number in range(CASES):
            if number % OF_A_TENANT == 0:
                caller = await served.tenant(f"tenant-{number}")
            if number % RENEWED == 0:  # what was made before may have been taken away
                mine = await things(served, caller, number)
                files[1:] = [(await exported(caller, mine["snapshot"]))[1]]
                known.update({kind: [name, name, name, others[kind]] for kind, name in mine.items()})
            method = calls[number % len(calls)]
            sent = hostile.sent(method)
            wrong = ""
            try:
                async with asyncio.timeout(2 * LONGEST):
                    operators = method.containing_service.name == "TenantService" and chosen.random() < 0.9
                    await call(operator if operators else caller, method, sent)
                answered.add(method.name)
            except grpc.aio.AioRpcError as error:
                wrong = wrong_with(error)
            except TimeoutError:
                wrong = "no answer"
            if number % COLLECTED == 0:
                gc.collect()  # what nobody has waited for is told of then
            logged = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
            told = [f"{record.getMessage()}: {record.exc_info}" for record in logged]
            caplog.clear()
            if wrong or told:
                faults.append(f"case {number}, {method.full_name} {[part[:300] for part in sent][:5]}: {wrong} {told}")
            if number == CASES // 10:
                before = memory()
        assert faults == []
        assert memory() - before < GROWTH
        assert len(answered) >= REACHED * len(calls), {method.name for method in calls} - answered
        session = await served.caller.open_session()
        assert (await served.caller.turn(session, "1+1")).printed == "2\n"
        assert (await served.caller.ask()).run.answer == "1"
