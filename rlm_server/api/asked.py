"""Reads and writes what a run is asked for besides its question: the form of its answer, how to answer and to write."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from rlm.v1 import run_pb2

from rlm_server.api.auth import tenant
from rlm_server.api.errors import InvalidField
from rlm_server.api.field_checks import FieldChecks
from rlm_server.broker.providers.temperatures import MOST
from rlm_server.broker.routes import Routes
from rlm_server.broker.sampling import Sampling, wrong_stops
from rlm_server.contexts.context_table import Context
from rlm_server.repl.limits import RunLimits
from rlm_server.runs import direct
from rlm_server.runs.asked import MAX_INSTRUCTIONS, Asked, Strategy
from rlm_server.runs.cuts import size_of
from rlm_server.runs.supervisor import NewRun
from rlm_server.schemas.schema import Schema, SchemaRefused
from rlm_server.shares.threads import Purpose, Threads

Asking = run_pb2.CreateRunRequest | run_pb2.CompleteRequest
_STRATEGIES = {
    run_pb2.STRATEGY_UNSPECIFIED: Strategy.RLM,
    run_pb2.STRATEGY_AUTO: Strategy.AUTO,
    run_pb2.STRATEGY_RLM: Strategy.RLM,
    run_pb2.STRATEGY_DIRECT: Strategy.DIRECT,
}
_NAMES = {"temperature": "temperature", "stop": "stop_sequences"}


class AskedReader:
    """Reads it from requests, by what a tenant's models take and its limits allow."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def read(
        self, check: FieldChecks, request: Asking, routes: Routes, models: Iterable[str], ceiling: RunLimits
    ) -> Asked:
        """Read what a request asks for besides; `models` are those of its run, which may be wrong themselves."""
        if request.answer_schema:
            await self._check_schema(check, request.answer_schema)
        if len(request.instructions) > MAX_INSTRUCTIONS:
            check.wrong("instructions", f"may have {MAX_INSTRUCTIONS} characters, not {len(request.instructions)}")
        sampling = check(_sampling, request.sampling, ceiling)
        if sampling is not None:
            for model in dict.fromkeys(models):
                if model in routes.models:
                    for name, why in sampling.not_taken(model, routes.route(model)):
                        check.wrong(f"sampling.{_NAMES[name]}", why)
        strategy = check(_strategy, request.strategy)
        return Asked(request.answer_schema, request.instructions.strip(), sampling, strategy)

    async def _check_schema(self, check: FieldChecks, text: str) -> None:
        try:
            await self._threads.run(Purpose.SCHEMAS, tenant(), partial(Schema.of, text))
        except SchemaRefused as error:
            for violation in error.violations:
                check.wrong("answer_schema", str(violation))


def _sampling(wanted: run_pb2.Sampling, ceiling: RunLimits) -> Sampling:
    with FieldChecks() as check:
        temperature = check(_temperature, wanted.temperature) if wanted.HasField("temperature") else None
        tokens = (
            check(_tokens, wanted.max_token_count, ceiling.root_tokens) if wanted.HasField("max_token_count") else None
        )
        if wrong := wrong_stops(list(wanted.stop_sequences)):
            check.wrong("sampling.stop_sequences", wrong)
    return Sampling(temperature, tokens, tuple(wanted.stop_sequences))


def _temperature(value: float) -> float:
    if not 0 <= value <= MOST:
        raise InvalidField("sampling.temperature", f"must be from 0 to {MOST:g}, not {value:g}")
    return value


def _tokens(value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise InvalidField("sampling.max_token_count", f"must be from 1 to {most} (root_tokens), not {value}")
    return value


def _strategy(value: run_pb2.Strategy.ValueType) -> Strategy:
    if value not in _STRATEGIES:
        raise InvalidField("strategy", f"must be AUTO, RLM or DIRECT, not {value}")
    return _STRATEGIES[value]


def check_direct(new: NewRun, given: Context | None, text: str, routes: Routes) -> None:
    """Refuse a run that is to be answered directly from a context, or a text, which its model cannot read at once."""
    if new.asked.strategy is not Strategy.DIRECT:
        return
    if given is not None:
        reading = direct.Reading.of(given.content, new.question, new.asked)
    else:
        reading = direct.Reading.of_text(size_of(text), new.question, new.asked)
    most_output = new.asked.lowered(new.limits).root_tokens
    if why := direct.refusal(new.model, routes.route(new.model), reading, most_output):
        raise InvalidField("strategy", why)


def write(asked: Asked, run: run_pb2.Run) -> None:
    """Write what a run was asked for into its message."""
    run.answer_schema, run.instructions = asked.answer_schema, asked.instructions
    run.strategy = run_pb2.Strategy.Value(f"STRATEGY_{asked.strategy.upper()}")
    if asked.sampling != Sampling():
        run.sampling.CopyFrom(
            run_pb2.Sampling(
                temperature=asked.sampling.temperature,
                max_token_count=asked.sampling.max_tokens,
                stop_sequences=asked.sampling.stop,
            )
        )
