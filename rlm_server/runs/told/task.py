"""The first message of a node: its question, and the state of its environment."""

from __future__ import annotations

from rlm_server.runs.told.environment import Environment


def task(question: str, environment: Environment) -> str:
    """Compose the first message."""
    return f"Question:\n{question}\n\nEnvironment:\n{environment.describe()}"
