"""What a run is asked for besides its question, as a program has it and as it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlm.v1 import run_pb2

AnswerSchema = Mapping[str, Any] | bool | str
"""A JSON Schema (2020-12): as data, or as JSON."""


Strategy = Literal["auto", "rlm", "direct"]
"""How a question is answered: by an RLM, directly by one call with the whole text, or as the server finds better."""

STRATEGIES: Mapping[Strategy, run_pb2.Strategy.ValueType] = {
    "auto": run_pb2.STRATEGY_AUTO,
    "rlm": run_pb2.STRATEGY_RLM,
    "direct": run_pb2.STRATEGY_DIRECT,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the models of a run are to write. `temperature` is from 0 to 2, `max_tokens` bounds the output of one call.

    A model stops before it would write one of `stop`: at most 4 texts of at most 100 characters. What is None is left
    to the models.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()

    def message(self) -> run_pb2.Sampling:
        """Write it as it is sent."""
        return run_pb2.Sampling(temperature=self.temperature, max_token_count=self.max_tokens, stop_sequences=self.stop)


@dataclass(frozen=True, slots=True)
class Guards:
    """When a run is ended, or held back, though it has money: no later than the server says. None is the server's.

    `repeats` are turns of a node with the same code and the same result, `errors_in_a_row` those that fail one after
    another, `nodes` all RLMs of the run, and `children` the child RLMs at work at once, at each depth.
    """

    repeats: int | None = None
    errors_in_a_row: int | None = None
    nodes: int | None = None
    children: int | None = None

    def message(self) -> run_pb2.RunLimits:
        """Write them as they are sent."""
        return run_pb2.RunLimits(
            repeat_count=self.repeats,
            errors_in_a_row_count=self.errors_in_a_row,
            node_count=self.nodes,
            children_count=self.children,
        )


def written(schema: AnswerSchema | None) -> str:
    """Write a schema as JSON; one that is a `str` already is that."""
    if schema is None or isinstance(schema, str):
        return schema or ""
    return json.dumps(schema, ensure_ascii=False)


def sampling_message(sampling: Sampling | None) -> run_pb2.Sampling | None:
    """Write a sampling as it is sent, where there is one."""
    return None if sampling is None else sampling.message()
