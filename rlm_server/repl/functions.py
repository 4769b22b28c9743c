"""The functions that guest code may call, in runs and in sessions: one table, and an entry for each.

A new function is a new entry in `FUNCTIONS` and a stub in `guest/`. Its requests are answered, its line is in the
prompt, and its stub is in the golden images, because all three are read from the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rlm_server.repl.call_request import MODELS, STOPS, TEMPERATURE, TOKENS
from rlm_server.repl.metering import check_host_time
from rlm_server.repl.model_calls import ModelCalls
from rlm_server.repl.search_call import answer_count, answer_search
from rlm_server.shares.shares import Shares
from sandbox.door import (
    FLAG,
    INTEGER,
    ITEMS,
    NUMBER,
    TEXT,
    TEXTS,
    Arguments,
    DoorRefusal,
    HostCall,
    Json,
    Kind,
    optional,
)
from sandbox.pool.pool import LiveSession

_GUEST = Path(__file__).parent / "guest"

_SHARED = (_GUEST / "_rlm.py", _GUEST / "_printed.py", _GUEST / "_slots.py", _GUEST / "_answer_text.py")
"""Guest modules that stubs import."""

_DOLLARS = Kind("a number of US dollars", NUMBER.fits, "ValueError")


@dataclass(frozen=True, slots=True)
class Repl:
    """A REPL whose code calls a function: what the function's handler may use of it, in a run or in a session."""

    live: LiveSession
    calls: ModelCalls
    tenant: str
    shares: Shares


@dataclass(frozen=True, slots=True)
class NodeRepl(Repl):
    """The REPL of a run's node."""

    rlm_query: Callable[[HostCall], Awaitable[Json]]
    """Answers for child RLMs."""
    left: Callable[[], Awaitable[Json]]
    """Returns what is left to the node."""
    take_answer: Callable[[str, bool], None]
    """Takes the answer as the code has it so far, and whether it is ready."""
    call_tool: Callable[[HostCall], Awaitable[Json]]
    """Answers calls of the run's tools."""


_R = TypeVar("_R", bound=Repl)
Handler = Callable[[_R, HostCall], Awaitable[Json]]
"""Answers a function's requests from code of a REPL; refuses one by raising `DoorRefusal`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that guest code may call."""

    op: str
    """The `op` of its requests. Several names in the guest may ask for one, as a single call and its batch do."""
    arguments: Arguments
    """What its requests may hold. Anything else is refused before it is answered."""
    in_runs: Handler[NodeRepl] | str
    """What answers in a run. A text says why it is not there."""
    in_sessions: Handler[Repl] | str
    """What answers in a session. A text says why it is not there."""
    prompt: str
    """Its lines in the list that a model is shown; empty where these differ from run to run."""
    stub: Path
    """The guest module that offers it to the program, named as the file is."""


class Functions:
    """A table of functions."""

    def __init__(self, entries: Iterable[Function]) -> None:
        """Make a table.

        Raises:
            ValueError: two entries have the same `op`, or their stubs the same name.
        """
        self.entries = tuple(entries)
        for names in ([entry.op for entry in self.entries], [entry.stub.stem for entry in self.entries]):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"there are two functions called {', '.join(twice)}")
        self._arguments = {entry.op: entry.arguments for entry in self.entries}
        self._in_runs = {entry.op: entry.in_runs for entry in self.entries}
        self._in_sessions = {entry.op: entry.in_sessions for entry in self.entries}

    @property
    def prompt(self) -> str:
        """The list of the functions that there are in runs, as a model is shown it."""
        return "\n".join(entry.prompt for entry in self.entries if entry.prompt and not isinstance(entry.in_runs, str))

    @property
    def guest_modules(self) -> dict[str, Path]:
        """The modules a golden image needs, by name, in the order in which they are loaded."""
        stubs = (entry.stub for entry in self.entries)
        return {path.stem: path for path in (*_SHARED, *stubs, _GUEST / "_reply.py")}

    async def answer_run(self, repl: NodeRepl, call: HostCall) -> Json:
        """Answer a request of code in a run.

        Raises:
            DoorRefusal: there is no such function, or not in runs; it takes no such arguments; or what its handler
                refuses.
        """
        return await self._answer(self._in_runs, "run", repl, call)

    async def answer_session(self, repl: Repl, call: HostCall) -> Json:
        """Answer a request of code in a session.

        Raises:
            DoorRefusal: there is no such function, or not in sessions; it takes no such arguments; or what its handler
                refuses.
        """
        return await self._answer(self._in_sessions, "session", repl, call)

    async def _answer(self, handlers: Mapping[str, Handler[_R] | str], place: str, repl: _R, call: HostCall) -> Json:
        handler = _handler(handlers, call.op, place)
        call.check(self._arguments[call.op])
        await repl.shares.pace.wait(repl.tenant)
        return await handler(repl, call)


def _handler(handlers: Mapping[str, Handler[_R] | str], op: str, place: str) -> Handler[_R]:
    handler = handlers.get(op)
    if handler is None:
        raise DoorRefusal("ValueError", f"there is nothing called {op[:60]!r} to ask for")
    if isinstance(handler, str):
        there = ", ".join(name for name, other in handlers.items() if not isinstance(other, str))
        raise DoorRefusal("RuntimeError", f"{op} cannot be called in a {place}: {handler}. A {place} has {there}")
    check_host_time()
    return handler


async def _llm_query(repl: Repl, call: HostCall) -> Json:
    return await repl.calls.llm_query(call)


async def _rlm_query(repl: NodeRepl, call: HostCall) -> Json:
    return await repl.rlm_query(call)


async def _search(repl: Repl, call: HostCall) -> Json:
    return await answer_search(repl.live, call, repl.tenant, repl.shares.threads)


async def _count(repl: Repl, call: HostCall) -> Json:
    return await answer_count(repl.live, call, repl.tenant, repl.shares.threads)


async def _budget(repl: NodeRepl, call: HostCall) -> Json:  # noqa: ARG001
    return await repl.left()


async def _tool(repl: NodeRepl, call: HostCall) -> Json:
    return await repl.call_tool(call)


async def _answer(repl: NodeRepl, call: HostCall) -> Json:
    repl.take_answer(call.text("content"), call.arguments.get("ready") is True)
    return None


async def _no_answer(repl: Repl, call: HostCall) -> Json:  # noqa: ARG001
    """Take no notice of an answer: a session ends when its caller says so."""
    return None


FUNCTIONS = Functions(
    (
        Function(
            op="llm_query",
            arguments={
                "prompts": TEXTS,
                "model": optional(MODELS),
                "system": optional(TEXT),
                "max_tokens": optional(TOKENS),
                "temperature": optional(TEMPERATURE),
                "stop": optional(STOPS),
                "fresh": optional(FLAG),
            },
            in_runs=_llm_query,
            in_sessions=_llm_query,
            prompt="""\
- llm_query(prompt, model=None, *, system=None, max_tokens=None, temperature=None, stop=None, fresh=False) -> str: ask
  another model once. It sees only the prompt, so put the passage into it. fresh=True asks again what was asked before.
- llm_query_batched(prompts, model=None, ...) -> list[str]: many at once, in parallel. Prefer this to a loop.""",
            stub=_GUEST / "_llm_query.py",
        ),
        Function(
            op="rlm_query",
            arguments={"prompts": TEXTS, "contexts": ITEMS, "model": optional(MODELS), "budget": optional(_DOLLARS)},
            in_runs=_rlm_query,
            in_sessions="a child RLM is part of a run",
            prompt="""\
- rlm_query(prompt, context=None, model=None, budget=None) -> str: give a sub-problem and its part of the text to a
  child with a REPL of its own, for parts too large or too involved for one llm_query.
- rlm_query_batched(prompts, contexts=None, ...) -> list[str]: many children at once.
- llm_query_async, rlm_query_async: the same, to be awaited, at the top level too: `await asyncio.gather(...)` has many
  run in parallel, and so has `ThreadPoolExecutor().map(llm_query, prompts)`. A `Thread` runs when it is started.""",
            stub=_GUEST / "_rlm_query.py",
        ),
        Function(
            op="search",
            arguments={
                "pattern": TEXT,
                "documents": optional(ITEMS),
                "part": optional(ITEMS),
                "limit": INTEGER,
                "around": optional(INTEGER),
                "after": optional(ITEMS),
            },
            in_runs=_search,
            in_sessions=_search,
            prompt="""\
- search(pattern, documents=None, limit=100, around=0) -> list: where a regular expression (RE2) matches, in linear
  time, of any size: each match has .document, .name, .start, .end (characters) and .text; around=200 gives the text
  around, near ones together; .next() of the list gives the following ones.""",
            stub=_GUEST / "_search.py",
        ),
        Function(
            op="count",
            arguments={"pattern": TEXT, "documents": optional(ITEMS), "part": optional(ITEMS)},
            in_runs=_count,
            in_sessions=_count,
            prompt="- count(pattern, documents=None) -> int: how often it matches.",
            stub=_GUEST / "_count.py",
        ),
        Function(
            op="budget",
            arguments={},
            in_runs=_budget,
            in_sessions="turns and depth are a run's",
            prompt="""\
- budget() -> dict: what is left. SHOW_VARS() -> str: your variables. Code may catch `LimitExceeded`, `ModelError` (its
  `.kind` says why) and `AnswerCut`.""",
            stub=_GUEST / "_budget.py",
        ),
        Function(
            op="tool",
            arguments={"name": TEXT, "arguments": TEXT},
            in_runs=_tool,
            in_sessions="tools are a run's",
            prompt="",  # which tools a run has, and so its lines, its caller says
            stub=_GUEST / "_tools.py",
        ),
        Function(
            op="answer",
            arguments={"content": TEXT, "ready": FLAG},
            in_runs=_answer,
            in_sessions=_no_answer,
            prompt="""\
- printed: a list. printed[-1] is a str with all that the last block printed, printed[-2] that of the one before it.
- answer: a dict. Put your answer in answer["content"] and set answer["ready"] = True to finish.""",
            stub=_GUEST / "_answer.py",
        ),
    )
)
"""What the code of runs and sessions may call."""
