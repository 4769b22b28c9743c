"""Reads what a run is asked for besides its question: the form of its answer."""

from __future__ import annotations

from functools import partial

from rlm.v1 import run_pb2

from rlm_server.api.auth import tenant
from rlm_server.api.field_checks import FieldChecks
from rlm_server.runs.asked import Asked
from rlm_server.schemas.schema import Schema, SchemaRefused
from rlm_server.shares.threads import Purpose, Threads

Asking = run_pb2.CreateRunRequest | run_pb2.CompleteRequest


async def read(check: FieldChecks, request: Asking, threads: Threads) -> Asked:
    """Read what a request asks for besides."""
    if request.answer_schema:
        await _check_schema(check, request.answer_schema, threads)
    return Asked(request.answer_schema)


async def _check_schema(check: FieldChecks, text: str, threads: Threads) -> None:
    try:
        await threads.run(Purpose.SCHEMAS, tenant(), partial(Schema.of, text))
    except SchemaRefused as error:
        for violation in error.violations:
            check.wrong("answer_schema", str(violation))
