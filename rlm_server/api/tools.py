"""Reads tools, and answers to their calls, out of requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rlm.v1 import run_pb2

from rlm_server.api import requests
from rlm_server.api.errors import InvalidField
from rlm_server.api.field_checks import FieldChecks
from rlm_server.broker.attempt import MAX_TOKENS
from rlm_server.broker.provider import ModelReply
from rlm_server.ledger import Usage
from rlm_server.repl.limits import RunLimits
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Purpose
from rlm_server.tools.deployed import Deployed
from rlm_server.tools.tool import AskedTool, Tool, read_tools
from rlm_server.tools.waiting import Submitted


def deployed(check: FieldChecks, names: Sequence[str], offered: Mapping[str, Deployed]) -> dict[str, Deployed]:
    """Return the tools of the deployment that a run is to have, and note those that its tenant may not use."""
    if len(names) > len(offered):
        check.wrong("deployment_tools", f"may name {len(offered)} tools, each once, not {len(names)}")
        return {}
    for number, name in enumerate(names):
        if name not in offered or name in names[:number]:
            known = ", ".join(sorted(offered)) or "none"
            check.wrong(f"deployment_tools[{number}]", f"must name a tool, once, of these: {known}")
    return {name: offered[name] for name in names if name in offered}


async def read(
    check: FieldChecks,
    asked: Sequence[run_pb2.Tool],
    limits: RunLimits,
    tenant: str,
    shares: Shares,
    taken: Collection[str] = (),
) -> tuple[Tool, ...]:
    """Return the tools that a run is to have, besides those whose names are `taken`, and note all that is wrong."""
    if not asked:
        return ()
    if len(asked) > limits.tools:
        check.wrong("tools", f"may have {limits.tools} tools, not {len(asked)}")
        return ()
    named = [_tool(check, number, one) for number, one in enumerate(asked)]
    tools, wrong = await shares.threads.run(
        Purpose.SCHEMAS,
        tenant,
        lambda cancelled: read_tools(named, limits.tool_seconds, taken=taken, cancelled=cancelled),
    )
    for one in wrong:
        check.wrong(one.field, one.message)
    return tools


def _tool(check: FieldChecks, number: int, asked: run_pb2.Tool) -> AskedTool:
    seconds = None
    if asked.HasField("timeout"):
        milliseconds = check(requests.duration, asked.timeout, f"tools[{number}].timeout")
        seconds = None if milliseconds is None else milliseconds / 1000
    return AskedTool(asked.name, asked.description, asked.arguments_schema, seconds)


def submitted(request: run_pb2.SubmitResultRequest) -> Submitted:
    """Return what a client answers.

    Raises:
        InvalidField: it has no outcome.
    """
    outcome = request.WhichOneof("outcome")
    if outcome is None:
        raise InvalidField("outcome", "must be set: result_json, error or model")
    if outcome == "model":
        return Submitted(reply=_reply(request.model))
    return Submitted(request.result_json) if outcome == "result_json" else Submitted(error=request.error)


def _reply(said: run_pb2.ModelResult) -> ModelReply:
    """Return what a client answers as a model. Where it does not say how it ended, it ended there."""
    with FieldChecks() as check:
        for name in ("input_token_count", "output_token_count"):
            count = getattr(said, name)
            if not 0 <= count <= MAX_TOKENS:
                check.wrong(f"model.{name}", f"must be from 0 to {MAX_TOKENS}, not {count}")
        if said.end not in _ENDS:
            check.wrong("model.end", f"must be how a reply ends, not {said.end}")
    return ModelReply(said.text, Usage(input=said.input_token_count, output=said.output_token_count), _ENDS[said.end])


_ENDS: dict[int, Literal["end", "length", "refusal"]] = {
    run_pb2.REPLY_END_UNSPECIFIED: "end",
    run_pb2.REPLY_END_COMPLETE: "end",
    run_pb2.REPLY_END_LENGTH: "length",
    run_pb2.REPLY_END_REFUSAL: "refusal",
}
