"""What code may make a run, or a session, use besides its budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a run may use besides its budget. Times are in seconds."""

    max_turns: int = 30
    """Turns of each node."""
    max_depth: int = 2
    """Levels of child RLMs below the root."""
    wall_seconds: float = 3600.0
    """The whole run."""
    batch: int = 2000
    """Prompts of one batched call."""
    children: int = 16
    """Child RLMs at work at once, at each depth."""
    errors_in_a_row: int = 5
    """Turns of a node that fail one after another."""
    repeats: int = 3
    """Turns of a node with the same code and the same result."""
    root_tokens: int = 8192
    """Output of one call of a node's own model."""
    sub_tokens: int = 4096
    """Output of one `llm_query`."""
    sandbox: Limits = field(default_factory=Limits)
