"""Model calls that guest code makes: checked, paid, answered once for identical prompts, and reported."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Self

from rlm_server.broker.breaker import RouteUnavailable
from rlm_server.broker.broker import Broker, CallFailed
from rlm_server.broker.provider import Failure, Message, ModelRequest, ProviderError
from rlm_server.broker.routes import Routes, UnknownModel
from rlm_server.ledger import Amounts, BudgetError, BudgetExceeded, Payer
from rlm_server.repl.bounds import MAX_ERROR, MAX_NAME, MAX_REASON, cut
from rlm_server.repl.call_tally import Call, Failures, Report, Tally
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import CachedAnswer, Memo
from rlm_server.repl.tracing import Tracer
from rlm_server.shares.host_time import charged, measured
from rlm_server.shares.shares import Shares
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal, HostCall, Json, granted

_BROKEN = frozenset({Failure.AUTH, Failure.UNAVAILABLE, Failure.INTERNAL})
"""Failures that the next call would meet as well."""

Slot = dict[str, Json]
"""What a prompt got: `ok` or `error`."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a guest's calls are made: the model where it names none, and the limits of calls, batches and failures."""

    model: str
    max_tokens: int
    most_prompts: int
    deadline: float
    """On `time.monotonic()`."""
    most_failed: int
    """Calls of a turn that may fail."""
    most_failed_in_all: int
    """Calls of the whole run, or session, that may fail."""
    reply_bytes: int
    """Of all the answers to one request."""

    @classmethod
    def of(cls, limits: RunLimits, model: str, deadline: float) -> Self:
        """Return the options that limits allow."""
        return cls(
            model,
            limits.sub_tokens,
            limits.batch,
            deadline,
            limits.failed_calls,
            limits.run_failed_calls,
            limits.sandbox.frame_bytes,
        )


@dataclass(slots=True)
class _Refusal:
    """Why calls are not made, as the guest is told it."""

    type: str
    message: str

    @property
    def slot(self) -> Slot:
        return failed(self.type, self.message)


@dataclass(slots=True)
class _Batch:
    """The prompts of a request: `places` has the slots of each, in their order. `room` is left for answers, in bytes.

    `refusal` says why those that were not sent yet are not going to be.
    """

    model: str
    slots: list[Slot | None]
    places: dict[str, list[int]]
    room: int
    refusal: _Refusal | None = None

    @classmethod
    def of(cls, model: str, prompts: list[str], room: int) -> Self:
        places: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(number)
        return cls(model, [None] * len(prompts), places, room)

    def fill(self, prompt: str, slot: Slot) -> None:
        """Give every slot of a prompt a copy."""
        for place in self.places[prompt]:
            self.slots[place] = dict(slot)

    def answer(self, prompt: str, text: str, most: int) -> None:
        """Answer a prompt in all its slots. What does not fit into a reply any more is an error, and ends the batch."""
        size = len(granted(text)) * len(self.places[prompt])
        if size > self.room:
            self.refusal = _Refusal("LimitExceeded", f"the answers to one request may have {most} bytes (frame_bytes)")
            self.fill(prompt, self.refusal.slot)
        else:
            self.room -= size
            self.fill(prompt, {"ok": text})

    @property
    def unanswered(self) -> int:
        """How many slots have nothing yet."""
        return self.slots.count(None)

    def finished(self) -> list[Slot]:
        """Return the slots. Those of prompts that were not sent have the refusal."""
        rest = {} if self.refusal is None else self.refusal.slot
        return [dict(rest) if slot is None else slot for slot in self.slots]


class ModelCalls:
    """Serves `llm_query` for one session, or one node of a run.

    As many calls go on at once as a run may have. The others of a batch have no task yet, and wait for their turn.
    """

    def __init__(
        self,
        broker: Broker,
        payer: Payer,
        options: CallOptions,
        memo: Memo,
        failures: Failures,
        tracer: Tracer,
        report: Report,
        shares: Shares,
    ) -> None:
        """The work of making calls is charged to the tenant: it is not limited for a turn, as other work is."""
        self._broker, self._payer, self.options = broker, payer, options
        self._bill, self._pace = shares.host_times.of(payer.tenant), shares.pace
        self._memo, self._failures, self._tracer, self._report = memo, failures, tracer, report
        self._tally = self.begin_turn()
        self._places = asyncio.Semaphore(broker.run_calls)
        self.count = 0

    def begin_turn(self) -> Tally:
        """Count the calls from now on by themselves, as those of a turn, and return what counts them."""
        self._tally = Tally(self._report)
        return self._tally

    async def llm_query(self, call: HostCall) -> Json:
        """Answer a request `llm_query(prompts, model)`: a slot for each prompt, in order, `ok` or `error`."""
        model = model_named(call)
        return list(await self.ask(call.texts("prompts"), model))

    async def ask(self, prompts: list[str], model: str | None) -> list[Slot]:
        """Ask a model about every prompt, and return a slot for each, in order: `ok` or `error`.

        Identical prompts are asked once. Where the budget or the model can take no further call, those that were not
        sent yet get the same error as the one that found out.

        Raises:
            DoorRefusal: there are too many prompts, or none; there is no such model; too many calls have failed; or not
                one of the prompts could be paid, or sent. Nothing was told then.
        """
        named = model if model is not None else self.options.model
        check_model(self._broker.routes, named)
        check_batch(len(prompts), self.options.most_prompts)
        refusal = self._too_many_failed()
        if refusal is not None:
            raise DoorRefusal(refusal.type, refusal.message)
        batch = _Batch.of(named, prompts, self.options.reply_bytes)
        unknown = await self._recall(batch)
        if unknown:
            batch.refusal = batch.refusal or await self._hopeless(batch, list(unknown))
            await self._send(batch, unknown)
            self._tally.not_made(batch.unanswered)
        return batch.finished()

    async def _recall(self, batch: _Batch) -> dict[str, bytes]:
        """Answer what is known already. Return the keys of the other prompts, by these."""
        unknown: dict[str, bytes] = {}
        for prompt in batch.places:
            key = self._key(batch.model, prompt)
            known = self._memo.get(key)
            if known is None:
                unknown[prompt] = key
            else:
                self._remembered(batch, prompt, known, len(batch.places[prompt]))
            await self._pace.wait(self._payer.tenant)
            await asyncio.sleep(0)  # others have their turn between the hashes of two long prompts
        return unknown

    def _key(self, model: str, prompt: str) -> bytes:
        return hashlib.sha256(f"{model}\0{self.options.max_tokens}\0{prompt}".encode("utf-8", "replace")).digest()

    async def _hopeless(self, batch: _Batch, prompts: list[str]) -> _Refusal | None:
        """Say why not one of the prompts can be sent, if so.

        Raises:
            DoorRefusal: so it is, and there is no answer to any other prompt of the batch.
        """
        shortest = min(
            prompts, key=lambda prompt: len(prompt) if prompt.isascii() else len(prompt.encode("utf-8", "replace"))
        )
        try:
            async with self._places:
                await self._broker.check(self._request(batch.model, shortest), self._payer)
        except (BudgetExceeded, RouteUnavailable) as error:
            refusal = self._failed(batch, error)
        except ProviderError:  # the shortest is no text that can be sent; others may be
            return None
        else:
            return None
        if len(prompts) == len(batch.places):
            raise DoorRefusal(refusal.type, refusal.message)
        return refusal

    async def _send(self, batch: _Batch, prompts: dict[str, bytes]) -> None:
        """Ask about the prompts, in their order, until one finds that it is of no use."""
        async with asyncio.TaskGroup() as group:
            for prompt, key in prompts.items():
                await self._pace.wait(self._payer.tenant)
                await self._places.acquire()
                batch.refusal = batch.refusal or self._too_many_failed()
                if batch.refusal is not None:
                    self._places.release()
                    break
                asking = group.create_task(self._one(batch, prompt, key))
                asking.add_done_callback(lambda _: self._places.release())

    async def _one(self, batch: _Batch, prompt: str, key: bytes) -> None:
        async with self._memo.turn(key):
            known = self._memo.get(key)
            if known is not None:  # an identical call was under way
                self._remembered(batch, prompt, known, len(batch.places[prompt]))
            elif batch.refusal is None:
                await self._paid(batch, prompt, key)

    async def _paid(self, batch: _Batch, prompt: str, key: bytes) -> None:
        self.count += 1
        call = Call(_new_id(), batch.model, len(prompt))
        self._tally.started(call)
        request = self._request(batch.model, prompt)
        try:
            with charged(self._bill):
                making = self._broker.complete(request, self._payer, deadline=self.options.deadline, call_id=call.id)
                done = await measured(making, self._bill)
        except asyncio.CancelledError:
            await run_to_completion(self._cancelled(call))
            raise
        except (CallFailed, BudgetError) as error:
            spent = error.spent if isinstance(error, CallFailed) else Amounts()
            self._tally.ended(call, spent, str(error))
            refusal = self._failed(batch, error)
            batch.fill(prompt, refusal.slot)
            if self._is_lasting(error):
                batch.refusal = batch.refusal or refusal
            if isinstance(error, CallFailed) and error.billed:
                self._tracer.trace(call.id, [prompt], self._report)
        else:
            answer = CachedAnswer(done.reply.text, done.model)
            self._memo.put(key, answer)
            self._tally.answered(call, done.model, done.spent, len(answer.text))
            self._tracer.trace(call.id, [prompt], self._report)
            self._remembered(batch, prompt, answer, len(batch.places[prompt]) - 1)

    def _request(self, model: str, prompt: str) -> ModelRequest:
        return ModelRequest(model, (Message("user", prompt),), max_tokens=self.options.max_tokens)

    def _remembered(self, batch: _Batch, prompt: str, answer: CachedAnswer, calls: int) -> None:
        """Answer a prompt in all its slots, of which so many are answered from memory."""
        self.count += calls
        for _ in range(calls):
            self._tally.from_memory(
                Call(_new_id(), batch.model, len(prompt), told=False), answer.model, len(answer.text)
            )
        batch.answer(prompt, answer.text, self.options.reply_bytes)

    async def _cancelled(self, call: Call) -> None:
        self._tally.ended(call, await self._broker.cost(call.id), "cancelled")

    # ---- failures ------------------------------------------------------------------------------------------------

    def _failed(self, batch: _Batch, error: ProviderError | BudgetError) -> _Refusal:
        """Count a failure, and return what the guest is told of it."""
        self._tally.failed += 1
        self._failures.count += 1
        kind = "LimitExceeded" if isinstance(error, BudgetError) else "RuntimeError"
        return _Refusal(kind, cut(f"{batch.model}: {error}", MAX_ERROR))

    def _is_lasting(self, error: CallFailed | BudgetError) -> bool:
        """Whether the other calls of a batch would fail in the same way."""
        if isinstance(error, CallFailed):
            return error.failure in _BROKEN or not seconds_left(self.options.deadline)
        return isinstance(error, BudgetExceeded)

    def _too_many_failed(self) -> _Refusal | None:
        of_turn, in_all = self.options.most_failed, self.options.most_failed_in_all
        for count, most, name, whose in (
            (self._tally.failed, of_turn, "failed_calls", "turn"),
            (self._failures.count, in_all, "run_failed_calls", "run or session"),
        ):
            if count >= most:
                words = f"{count} model calls of this {whose} have failed, and it may make no more"
                return _Refusal("LimitExceeded", f"{words}; the limit is {most} ({name})")
        return None


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8. Most texts are ASCII, and are not copied for it."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _new_id() -> str:
    return "call_" + secrets.token_hex(16)


def model_named(call: HostCall) -> str | None:
    """Return the model a request names, or None.

    Raises:
        DoorRefusal: it is no text, or longer than a name may be.
    """
    if call.arguments.get("model") is None:
        return None
    name = call.text("model")
    if len(name) > MAX_NAME:
        raise DoorRefusal("ValueError", f"{call.op}: model may have {MAX_NAME} characters, not {len(name)}")
    return name


def check_model(routes: Routes, model: str) -> None:
    """Refuse a model that this server does not offer."""
    try:
        routes.route(model)
    except UnknownModel as error:
        raise DoorRefusal("ValueError", cut(str(error), MAX_REASON)) from None


def failed(type: str, message: str) -> Slot:
    """Make the slot of a request that failed."""
    return {"error": {"type": type, "message": cut(message, MAX_ERROR)}}


def check_batch(size: int, most: int) -> None:
    """Refuse an empty batch and one above the limit."""
    if not 1 <= size <= most:
        raise DoorRefusal("LimitExceeded", f"{size} prompts in one batch; the limit is 1 to {most}")


def seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline on `time.monotonic()`, never below 0."""
    return max(0.0, deadline - time.monotonic())
