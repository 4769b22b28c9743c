"""The first message of a node: its question, and the state of its environment."""

from __future__ import annotations

from rlm_server.runs.told import typed
from rlm_server.runs.told.environment import Environment


def task(question: str, environment: Environment, schema: str = "", *, further: bool = False) -> str:
    """Compose the first message. `schema` is the JSON Schema of the answer, empty for any text.

    A `further` question comes after another has been answered.
    """
    begins = "A further question; all variables are as they were" if further else "Question"
    form = f"\n\n{typed.task(schema)}" if schema else ""
    return f"{begins}:\n{question}{form}\n\nEnvironment:\n{environment.describe()}"
