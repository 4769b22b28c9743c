"""What a run is asked for besides its question, its models and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from pydantic import TypeAdapter

from rlm_server.broker.sampling import Sampling
from rlm_server.repl.limits import RunLimits
from rlm_server.runs.cuts import CutText, size_of
from rlm_server.runs.redaction import RunRedaction


class Strategy(StrEnum):
    """How a question is answered: by an RLM, directly by one call with the whole text, or as `auto` finds better."""

    AUTO = "auto"
    RLM = "rlm"
    DIRECT = "direct"


MAX_INSTRUCTIONS = 20_000
"""Characters of the instructions of a run: its models are sent them in every call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is asked for besides. `answer_schema` is the JSON Schema of its answer, empty for any text.

    `instructions` say how to answer, in the words of whoever asks.
    """

    answer_schema: str = ""
    instructions: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    strategy: Strategy = Strategy.RLM

    @property
    def size(self) -> int:
        """Bytes of UTF-8 of its texts."""
        return size_of(self.answer_schema) + size_of(self.instructions)

    def lowered(self, limits: RunLimits) -> RunLimits:
        """Return the limits of a run, with no more output of a call than its sampling says."""
        most = self.sampling.max_tokens
        if most is None:
            return limits
        return replace(limits, root_tokens=min(limits.root_tokens, most), sub_tokens=min(limits.sub_tokens, most))

    def kept_form(self, redaction: RunRedaction) -> tuple[Asked, tuple[CutText, ...]]:
        """Return what is kept of it, and what is redacted."""
        schema, of_schema = redaction.text("answer_schema", self.answer_schema)
        instructions, of_instructions = redaction.text("instructions", self.instructions)
        stops, of_stops = redaction.text("sampling.stop_sequences", "\0".join(self.sampling.stop))
        sampling = replace(self.sampling, stop=self.sampling.stop if stops else ())
        return Asked(schema, instructions, sampling, self.strategy), (*of_schema, *of_instructions, *of_stops)


_samplings = TypeAdapter(Sampling)


def to_row(asked: Asked) -> tuple[str, str, str, str]:
    """Write it for the store."""
    return asked.answer_schema, asked.instructions, _samplings.dump_json(asked.sampling).decode(), asked.strategy


def from_row(answer_schema: str, instructions: str, sampling: str, strategy: str) -> Asked:
    """Read what `to_row` wrote, or a row of before there was any of it."""
    return Asked(answer_schema, instructions, _samplings.validate_json(sampling or "{}"), Strategy(strategy))
