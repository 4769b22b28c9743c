"""The JSON Schema of an answer, as a program has it and as it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

AnswerSchema = Mapping[str, Any] | bool | str
"""A JSON Schema (2020-12): as data, or as JSON."""


def written(schema: AnswerSchema | None) -> str:
    """Write a schema as JSON; one that is a `str` already is that."""
    if schema is None or isinstance(schema, str):
        return schema or ""
    return json.dumps(schema, ensure_ascii=False)
