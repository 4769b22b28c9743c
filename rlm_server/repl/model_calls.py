"""Model calls that guest code makes: checked, paid, answered once for identical prompts, and reported."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.routes import UnknownModel
from rlm_server.ledger import Amounts, BudgetError, Payer
from rlm_server.repl.events import CallFinished, CallStarted, CallTraced, FinishedCall
from rlm_server.repl.tracing import Tracer
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal, HostCall, Json

Report = Callable[[CallStarted | CallFinished | CallTraced], None]
"""Told of every call as it starts and ends."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer, and the model that gave it: another than the one asked where a fallback did."""

    text: str
    model: str


class Memo:
    """The answers of a run's calls, by the model asked and the prompt: an identical call is free."""

    def __init__(self) -> None:
        self._answers: dict[bytes, CachedAnswer] = {}
        self._locks: defaultdict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)

    def lock(self, key: bytes) -> asyncio.Lock:
        """Return the lock under which a key's call is made, so that an identical one waits for its answer."""
        return self._locks[key]

    def get(self, key: bytes) -> CachedAnswer | None:
        """Return a known answer."""
        return self._answers.get(key)

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        """Keep an answer."""
        self._answers[key] = answer


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a guest's calls are made: the model where it names none, and the limits of each call and batch."""

    model: str
    max_tokens: int
    most_prompts: int
    deadline: float
    """On `time.monotonic()`."""


class ModelCalls:
    """Serves `llm_query` for one session, or one node of a run."""

    def __init__(
        self, broker: Broker, payer: Payer, options: CallOptions, memo: Memo, tracer: Tracer, report: Report
    ) -> None:
        self._broker = broker
        self._payer = payer
        self.options = options
        self._memo = memo
        self._tracer = tracer
        self._report = report
        self.count = 0

    async def llm_query(self, call: HostCall) -> Json:
        """Answer a request `llm_query(prompts, model)`: a slot for each prompt, in order, `ok` or `error`."""
        prompts = call.texts("prompts")
        return list(await self.ask(prompts, model_named(call)))

    async def ask(self, prompts: list[str], model: str | None) -> list[dict[str, Json]]:
        """Ask a model about every prompt in parallel, and return a slot for each, in order: `ok` or `error`.

        Raises:
            DoorRefusal: there are too many prompts, or none.
        """
        check_batch(len(prompts), self.options.most_prompts)
        named = model if model is not None else self.options.model
        async with asyncio.TaskGroup() as group:
            slots = [group.create_task(self._one(prompt, named)) for prompt in prompts]
        return [slot.result() for slot in slots]

    async def _one(self, prompt: str, model: str) -> dict[str, Json]:
        key = hashlib.sha256(f"{model}\0{self.options.max_tokens}\0{prompt}".encode()).digest()
        self.count += 1
        call_id = "call_" + secrets.token_hex(16)
        self._report(CallStarted(call_id, model, len(prompt)))
        try:
            async with self._memo.lock(key):
                known = self._memo.get(key)
                if known is not None:
                    again = FinishedCall(call_id, known.model, Amounts(), memo=True)
                    self._report(CallFinished(again, len(known.text)))
                    return {"ok": known.text}
                return await self._paid(key, prompt, call_id, model)
        except asyncio.CancelledError:
            await run_to_completion(self._cancelled(call_id, model))
            raise

    async def _cancelled(self, call_id: str, model: str) -> None:
        spent = await self._broker.cost(call_id)
        self._report(CallFinished(FinishedCall(call_id, model, spent, error="cancelled"), 0))

    async def _paid(self, key: bytes, prompt: str, call_id: str, model: str) -> dict[str, Json]:
        request = ModelRequest(model, (Message("user", prompt),), max_tokens=self.options.max_tokens)
        try:
            done = await self._broker.complete(request, self._payer, deadline=self.options.deadline, call_id=call_id)
        except (CallFailed, BudgetError, UnknownModel) as error:
            spent = error.spent if isinstance(error, CallFailed) else Amounts()
            self._report(CallFinished(FinishedCall(call_id, model, spent, error=str(error)), 0))
            if isinstance(error, CallFailed) and error.billed:
                self._tracer.trace(call_id, [prompt], self._report)
            kind = "LimitExceeded" if isinstance(error, BudgetError) else "RuntimeError"
            return failed(kind, f"{model}: {error}")
        self._tracer.trace(call_id, [prompt], self._report)
        self._memo.put(key, CachedAnswer(done.reply.text, done.model))
        self._report(CallFinished(FinishedCall(call_id, done.model, done.spent), len(done.reply.text)))
        return {"ok": done.reply.text}


def model_named(call: HostCall) -> str | None:
    """Return the model a request names, or None."""
    return None if call.arguments.get("model") is None else call.text("model")


def failed(type: str, message: str) -> dict[str, Json]:
    """Make the slot of a request that failed."""
    return {"error": {"type": type, "message": message}}


def check_batch(size: int, most: int) -> None:
    """Refuse an empty batch and one above the limit."""
    if not 1 <= size <= most:
        raise DoorRefusal("LimitExceeded", f"{size} prompts in one batch; the limit is 1 to {most}")


def seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline on `time.monotonic()`, never below 0."""
    return max(0.0, deadline - time.monotonic())
