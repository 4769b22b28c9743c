"""What a run is asked for besides its question, its models and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.runs.cuts import CutText, size_of
from rlm_server.runs.redaction import RunRedaction


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is asked for besides. `answer_schema` is the JSON Schema of its answer, empty for any text."""

    answer_schema: str = ""

    @property
    def size(self) -> int:
        """Bytes of UTF-8 of its texts."""
        return size_of(self.answer_schema)


def kept_form(asked: Asked, redaction: RunRedaction) -> tuple[Asked, tuple[CutText, ...]]:
    """Return what is kept of it, and what is redacted."""
    return redaction.redacted(asked)
