"""What code may make a run, or a session, use besides its budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlm_server.broker.limits import MAX_OUTPUT_TOKENS
from rlm_server.repl.bounds import MAX_EVENT_TEXT
from sandbox.limits import MIB, Limits, limit

MAX_QUESTION = 100_000
"""Characters of a run's question, and of a child RLM's; a text belongs into a context."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a run may use besides its budget. A session has those of them that mean something without a loop."""

    max_turns: int = limit(30, least=1, most=1_000, unit="turns", doc="Turns of each node.")
    max_depth: int = limit(
        4,
        least=0,
        most=16,
        unit="levels",
        doc="Levels of child RLMs below the root. At the last one `rlm_query` is answered by `llm_query`.",
    )
    wall_seconds: float = limit(
        3_600.0,
        least=0.001,
        most=7 * 86_400,
        unit="seconds",
        doc="The whole run; in a session, the model calls of one turn.",
    )
    batch: int = limit(
        2_000,
        least=1,
        most=100_000,
        unit="prompts",
        doc="Prompts of a batched call that are made together. More of them follow after these.",
    )
    failed_calls: int = limit(
        100,
        least=1,
        most=100_000,
        unit="calls",
        doc="Model calls of one turn that may fail. Code that asks for more gets `LimitExceeded`.",
    )
    run_failed_calls: int = limit(
        1_000, least=1, most=1_000_000, unit="calls", doc="The same of a whole run, or of a session."
    )
    memo_bytes: int = limit(
        16 * MIB,
        least=0,
        most=1024 * MIB,
        unit="bytes",
        doc="Answers of a run, or session, kept so that an identical call is free. The oldest are forgotten.",
    )
    tools: int = limit(
        64, least=0, most=256, unit="tools", doc="Tools that a run's caller answers. A request with more is refused."
    )
    tool_calls: int = limit(
        1_000,
        least=1,
        most=100_000,
        unit="calls",
        doc="Calls of tools in one turn. Code that makes more gets `LimitExceeded`.",
    )
    tool_calls_at_once: int = limit(
        64,
        least=1,
        most=1_000,
        unit="calls",
        doc="Calls of tools of one run that wait for answers at once. Others wait.",
    )
    tool_seconds: float = limit(
        300.0,
        least=0.1,
        most=86_400,
        unit="seconds",
        doc="How long a call of a tool waits for its answer; a tool may name less. Then the code gets `TimeoutError`.",
    )
    tool_argument_bytes: int = limit(
        MAX_EVENT_TEXT,
        least=1_024,
        most=MAX_EVENT_TEXT,
        unit="bytes",
        doc="The arguments of one call of a tool, as JSON in UTF-8: an event tells them whole. Code that sends more "
        "gets `LimitExceeded`.",
    )
    tool_result_bytes: int = limit(
        MIB,
        least=1_024,
        most=MIB,
        unit="bytes",
        doc="What one call of a tool returns, as JSON in UTF-8, or a client says as a model: one request has it. More "
        "is refused.",
    )
    children: int = limit(
        16, least=1, most=1_000, unit="nodes", doc="Child RLMs of a run at work at once, at each depth. Others wait."
    )
    errors_in_a_row: int = limit(
        5, least=1, most=1_000, unit="turns", doc="Turns of a node that fail one after another, which end it."
    )
    repeats: int = limit(
        3,
        least=2,
        most=1_000,
        unit="turns",
        doc="Turns of a node with the same code and the same result, which end it.",
    )
    root_tokens: int = limit(
        8_192, least=1, most=MAX_OUTPUT_TOKENS, unit="tokens", doc="Output of one call of a node's own model."
    )
    root_attempts: int = limit(
        5,
        least=1,
        most=100,
        unit="attempts",
        doc="Attempts at one call of a node's own model, where those before failed and the next may not.",
    )
    sub_tokens: int = limit(4_096, least=1, most=MAX_OUTPUT_TOKENS, unit="tokens", doc="Output of one `llm_query`.")
    host_seconds: float = limit(
        10.0,
        least=0.1,
        most=3_600,
        unit="seconds",
        doc="Processor time of the server itself for one turn: searches, tracing, the handling of requests. More "
        "requests are refused.",
    )
    nodes: int = limit(
        1_000,
        least=1,
        most=2_000,  # a message of the protocol has them all
        unit="nodes",
        doc="RLMs of a run in all, the root included. The code gets an exception.",
    )
    answer_bytes: int = limit(
        8 * MIB,
        least=1_024,
        most=64 * MIB,
        unit="bytes",
        doc="The answer of a run, or of a child RLM, in UTF-8. The code gets an exception.",
    )
    answer_attempts: int = limit(
        3,
        least=1,
        most=100,
        unit="answers",
        doc="Answers of a run with an `answer_schema` that are not what it takes, which end it.",
    )
    event_bytes: int = limit(
        64 * MIB,
        least=64 << 10,
        most=4096 * MIB,
        unit="bytes",
        doc="Events of a run, as they are kept, which end it.",
    )
    sandbox: Limits = field(default_factory=Limits)
