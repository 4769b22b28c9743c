"""Calls that are cheap to make, many of them; and bytes that are no calls at all."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from rlm.v1 import budget_pb2, context_pb2, run_pb2, session_pb2

from benchmarks.neighbours.attacker import Attacker, Play
from benchmarks.neighbours.client import Client, block
from benchmarks.neighbours.scenario import POOR, Table

TABLE = Table()

AT_ONCE = 32
FORMATS = (budget_pb2.EXPORT_FORMAT_CSV, budget_pb2.EXPORT_FORMAT_JSONL)


async def _flood(attacker: Attacker, method: Callable[..., Any], request: Message, at_once: int = AT_ONCE) -> Play:
    async def play() -> None:
        await attacker.at_once(at_once, lambda _: attacker.call(method, request))

    return play


@TABLE.of(POOR)
async def flood_of_get_session(attacker: Attacker) -> Play:
    """GetSession, without end."""
    request = session_pb2.GetSessionRequest(session_id=await attacker.session())
    return await _flood(attacker, attacker.client.sessions.GetSession, request)


@TABLE.of()
async def flood_of_get_run(attacker: Attacker) -> Play:
    """GetRun of a run with 500 nodes, without end."""
    run = await attacker.run(block("_ = rlm_query_batched(['q'] * 500, [''] * 500, budget=0.0001)\nFINAL('done')"))
    return await _flood(attacker, attacker.client.runs.GetRun, run_pb2.GetRunRequest(run_id=run))


@TABLE.of(POOR)
async def flood_of_list_documents(attacker: Attacker) -> Play:
    """The names of 100,000 documents, without end."""
    context = await attacker.upload("", ["a document"] * 100_000)
    request = context_pb2.ListDocumentsRequest(context_id=context, page_size=10_000)
    return await _flood(attacker, attacker.client.contexts.ListDocuments, request)


@TABLE.of(POOR)
async def flood_of_reads(attacker: Attacker) -> Play:
    """A quarter of a million characters, read without end."""
    context = await attacker.upload("é" * 1_000_000)
    request = context_pb2.ReadContextRequest(context_id=context, start=1, end=262_145)
    return await _flood(attacker, attacker.client.contexts.ReadContext, request)


@TABLE.of(POOR)
async def flood_of_unknown_names(attacker: Attacker) -> Play:
    """Runs that there are not, with long names."""
    return await _flood(attacker, attacker.client.runs.GetRun, run_pb2.GetRunRequest(run_id="x" * 1_000_000), 16)


@TABLE.of()
async def ledger_exports(attacker: Attacker) -> Play:
    """The books as a file, without end, by 16 at once."""
    session = await attacker.session()
    await attacker.turn(session, "_ = [llm_query_batched([f'{m} {n}' for n in range(1000)]) for m in range(3)]")

    async def once(number: int) -> None:
        request = budget_pb2.ExportEntriesRequest(format=FORMATS[number % 2])
        call = attacker.client.budgets.ExportEntries(request, metadata=attacker.client.metadata)
        while await attacker.tried(call.read()):
            pass

    async def play() -> None:
        await attacker.at_once(16, once)

    return play


@TABLE.of()
async def flood_of_usage(attacker: Attacker) -> Play:
    """What was spent in each run, without end."""
    session = await attacker.session()
    await attacker.turn(session, "_ = [llm_query_batched([f'{m} {n}' for n in range(1000)]) for m in range(3)]")
    request = budget_pb2.ListUsageRequest(by=budget_pb2.USAGE_GROUPING_RUN, page_size=1_000)
    return await _flood(attacker, attacker.client.budgets.ListUsage, request)


@TABLE.of(POOR)
async def forged_page_tokens(attacker: Attacker) -> Play:
    """Page tokens of every form, small and of megabytes."""
    context = await attacker.upload("", ["a document"] * 1_000)
    forged: list[object] = [["contexts", 1 << 61], [context, 1 << 61, 1 << 61], [context, -1, 0], [context, 1e308, 1]]
    tokens = [base64.b64encode(json.dumps(one).encode(), altchars=b"-_").decode() for one in forged]
    tokens += [base64.b64encode(b"[" * 1_400).decode(), "A" * 3_000_000, "=" * 2_000]
    requests: list[tuple[Callable[..., Any], Message]] = []
    for token in tokens:
        documents = context_pb2.ListDocumentsRequest(context_id=context, page_token=token)
        requests.append((attacker.client.contexts.ListDocuments, documents))
        contexts = context_pb2.ListContextsRequest(page_token=token)
        requests.append((attacker.client.contexts.ListContexts, contexts))
        entries = budget_pb2.ListEntriesRequest(page_token=token)
        requests.append((attacker.client.budgets.ListEntries, entries))

    async def play() -> None:
        await attacker.at_once(len(requests), lambda number: attacker.call(*requests[number]))

    return play


METHODS = (
    *("/rlm.v1.ContextService/GetContext", "/rlm.v1.SessionService/CreateSession", "/rlm.v1.RunService/CreateRun"),
    *("/rlm.v1.BudgetService/ListEntries", "/rlm.v1.ContextService/SearchContext"),
)


@TABLE.of(POOR)
async def random_bytes(attacker: Attacker) -> Play:
    """Random bytes as requests, of a few bytes and of 3 MB."""

    async def once(number: int) -> None:
        call: Any = attacker.client.channel.unary_unary(METHODS[number % len(METHODS)])
        sent = os.urandom(3_000_000 if number % 8 == 0 else 100)
        await attacker.tried(call(sent, metadata=attacker.client.metadata))

    async def play() -> None:
        await attacker.at_once(AT_ONCE, once)

    return play


@TABLE.of(POOR)
async def headers(attacker: Attacker) -> Play:
    """Calls with as many headers as they may have."""
    request = session_pb2.GetSessionRequest(session_id="nobody")
    extra = [(f"x-header-{n}", "x" * 60) for n in range(60)]
    metadata = (*attacker.client.metadata, *extra)

    async def once(_: int) -> None:
        await attacker.tried(attacker.client.sessions.GetSession(request, metadata=metadata))

    async def play() -> None:
        await attacker.at_once(16, once)

    return play


@TABLE.of(POOR, keyless=True)
async def headers_of_strangers(attacker: Attacker) -> Play:
    """Calls with more headers than they may have, and calls with a wrong key, by new connections."""
    request = session_pb2.GetSessionRequest(session_id="nobody")

    async def once(number: int) -> None:
        client = Client(attacker.address, "wrong")
        extra = [(f"x-header-{n}", "x" * 60) for n in range(60 if number % 2 else 600)]
        for _ in range(20):
            await attacker.tried(client.sessions.GetSession(request, metadata=(*client.metadata, *extra)))
        await client.channel.close()

    async def play() -> None:
        await attacker.at_once(16, once)

    return play


@TABLE.of(POOR, keyless=True)
async def health_watchers(attacker: Attacker) -> Play:
    """Two thousand watchers of the server's health, which needs no key, and calls for a list of services."""

    async def watch(_: int) -> None:
        watched: Any = attacker.client.channel.unary_stream("/grpc.health.v1.Health/Watch")
        call = watched(b"")
        while await attacker.tried(call.read()):
            pass

    async def list_services(_: int) -> None:
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        listed: Any = attacker.client.channel.stream_stream(path)
        call = listed(iter([b"\x3a\x01*"] * 100))
        while await attacker.tried(call.read()):
            pass

    async def play() -> None:
        await attacker.together([attacker.at_once(2_000, watch), attacker.at_once(8, list_services)])

    return play
