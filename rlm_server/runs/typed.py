"""Answers of a run that has a JSON Schema for them: read as JSON, looked at by it, and refused where it takes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rlm_server.repl.bounds import MAX_REASON, cut
from rlm_server.runs.cuts import size_of
from rlm_server.runs.events import Guard
from rlm_server.runs.state import EndReason, NodeEnded, RunState
from rlm_server.runs.told import typed as told
from rlm_server.runs.tree import Tree
from rlm_server.schemas.schema import MAX_VALUE_LEVELS, MAX_VALUES, Schema, SchemaRefused, Violation
from rlm_server.schemas.values import Json, NotJson, read
from rlm_server.schemas.work import Work
from rlm_server.shares.threads import Cancelled, Purpose

T = TypeVar("T")

MAX_TYPED_BYTES = 1 << 20
"""Bytes of UTF-8 of an answer with a schema: nothing else of the server goes on while JSON is read."""

_PYTHON = {"True": "true", "False": "false", "None": "null"}
"""How code's values are written as answers, and as JSON."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text is as an answer: `answer`, JSON that the schema takes, or else what is wrong with it."""

    answer: str = ""
    violations: tuple[Violation, ...] = ()


class TypedAnswers:
    """Looks at the answers of one run, and counts those that its schema does not take. `best` is the last it took."""

    def __init__(self, tree: Tree, schema: Schema) -> None:
        self._tree, self._schema = tree, schema
        self._most = tree.limits.answer_attempts
        self.refused_count = 0
        self.best = ""

    @classmethod
    async def of(cls, tree: Tree) -> TypedAnswers | None:
        """Return what looks at the answers of a run; None where it has no schema.

        Raises:
            NodeEnded: it has one that this server does not take any more.
        """
        text = tree.asked.answer_schema
        if not text:
            return None
        try:
            return cls(tree, await _in_thread(tree, partial(Schema.of, text)))
        except SchemaRefused as error:
            raise NodeEnded(RunState.FAILED, cut(f"failed: answer_schema {error}", MAX_REASON)) from None

    async def judge(self, text: str) -> Verdict:
        """Look at a text that is to be the answer, and keep it where it can be."""
        size = size_of(text)
        if size > MAX_TYPED_BYTES:
            return Verdict(violations=(Violation("", f"it may have {MAX_TYPED_BYTES} bytes of UTF-8, not {size}"),))
        verdict = await _in_thread(self._tree, partial(verdict_on, self._schema, text))
        self.best = verdict.answer or self.best
        return verdict

    async def settle(self, draft: str) -> None:
        """Keep what the code had as its answer so far, where the schema takes it."""
        if draft.strip():
            await self.judge(draft)

    def refuse(self, verdict: Verdict, *, is_reply: bool = False) -> str:
        """Count an answer that is not taken, and return what the model is told of it. One may be a whole reply.

        Raises:
            NodeEnded: there were as many as may be.
        """
        self.refused_count += 1
        if self.refused_count >= self._most:
            why = f"{self.refused_count} answers were not what the schema takes (answer_attempts)"
            raise NodeEnded(RunState.EXHAUSTED, f"{EndReason.ANSWER_SCHEMA}: {why}")
        return told.refused(verdict.violations, self._most - self.refused_count, is_reply=is_reply)


def guard(verdict: Verdict, name: str = "no_answer") -> Guard:
    """Return the event of an answer that is not taken."""
    said = "; ".join(map(str, verdict.violations))
    return Guard(name, cut(f"{EndReason.ANSWER_SCHEMA}: {said}", MAX_REASON))


def verdict_on(schema: Schema, text: str, cancelled: Cancelled) -> Verdict:
    """Look at a text by a schema: as JSON, as JSON in a fence, as a value of Python's, or as a text of JSON.

    The first of these that the schema takes is the answer. What is wrong is said of the first that is JSON.
    """
    work, wrong = Work(cancelled), list[tuple[Violation, ...]]()
    unread = ""
    for written in _readings(text):
        try:
            value: Json = read(written, most_levels=MAX_VALUE_LEVELS, most_values=MAX_VALUES)
        except NotJson as error:
            unread = unread or str(error)
            continue
        found = schema.violations(value, work)
        if not found:
            return Verdict(written)
        wrong.append(found)
    if len(wrong) == 1:  # it is no JSON, and not what the schema takes as a text either
        return Verdict(violations=(Violation("", unread), Violation("", f"as a text: {wrong[0][0]}")))
    return Verdict(violations=wrong[0])


def _readings(text: str) -> Iterator[str]:
    said = text.strip()
    yield said
    yield from _fenced(said)
    if said in _PYTHON:
        yield _PYTHON[said]
    yield told.as_text(text)


def _fenced(text: str) -> Iterator[str]:
    """Yield what stands in the only fence of a text, where that is marked as JSON or not at all."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    if len(fences) == 2:
        first, last = fences
        if lines[first].strip("` \r").lower() in ("", "json") and not lines[last].strip("` \r"):
            yield "\n".join(lines[first + 1 : last]).strip()


async def _in_thread(tree: Tree, work: Callable[[Cancelled], T]) -> T:
    return await tree.services.shares.threads.run(Purpose.SCHEMAS, tree.run.tenant, work)
