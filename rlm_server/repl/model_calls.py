"""Model calls that guest code makes: checked, paid, answered once for identical prompts, and reported."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Self

from rlm_server.broker.breaker import RouteUnavailable
from rlm_server.broker.broker import Broker, CallFailed, Completion
from rlm_server.broker.outputs import Lowering
from rlm_server.broker.provider import Failure, ModelRequest, ProviderError
from rlm_server.ledger import Amounts, BudgetError, BudgetExceeded, Payer
from rlm_server.repl.bounds import MAX_ERROR, cut
from rlm_server.repl.call_batch import Asking, Batch, Refusal, Room, Slot, failed
from rlm_server.repl.call_request import PLAIN, CallForm, check_model, models_named
from rlm_server.repl.call_tally import Call, Failures, Report, Tally
from rlm_server.repl.limits import RunLimits
from rlm_server.repl.memo import CachedAnswer, Memo
from rlm_server.repl.owed import Owed
from rlm_server.repl.tracing import Tracer
from rlm_server.shares.host_time import charged, measured
from rlm_server.shares.shares import Shares
from sandbox.cancellation import run_to_completion
from sandbox.door import DoorRefusal, HostCall, Json

_BROKEN = frozenset({Failure.AUTH, Failure.UNAVAILABLE, Failure.INTERNAL})
"""Failures that the next call would meet as well."""

CANCELLED_AT_ONCE = 8
"""Calls of a batch that are cancelled in one step of the event loop."""
CANCELLING_SECONDS = 1.0
"""For so long a batch's calls are cancelled at their tenant's pace, and those that are left then without it."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a guest's calls are made: the model where it names none, and the limits of calls, batches and failures."""

    model: str
    max_tokens: int
    most_prompts: int
    """Prompts that are looked up, checked and sent at a time; those of a larger batch come after them."""
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
        owed: Owed,
    ) -> None:
        """The work of making calls is charged to the tenant: it is not limited for a turn, as other work is.

        An answer comes ahead of the books: what it cost is `owed` meanwhile.
        """
        self._broker, self._payer, self.options, self._owed = broker, payer, options, owed
        self._bill, self._pace = shares.host_times.of(payer.tenant), shares.pace
        self._memo, self._failures, self._tracer, self._report = memo, failures, tracer, report
        self._tally = self.begin_turn()
        self._places = asyncio.Semaphore(broker.run_calls)
        self._held: set[asyncio.Task[Any]] = set()
        """Those of whose calls one has, or had, a hold."""
        self.count = 0

    def begin_turn(self) -> Tally:
        """Count the calls from now on by themselves, as those of a turn, and return what counts them."""
        self._tally = Tally(self._report)
        return self._tally

    async def llm_query(self, call: HostCall) -> Json:
        """Answer a request `llm_query(prompts, model, …)`: a slot for each prompt, in order, `ok` or `error`."""
        prompts, form = call.texts("prompts"), CallForm.of(call)
        return list(await self.ask_each(prompts, models_named(call, len(prompts)), form))

    async def ask_each(self, prompts: list[str], models: Sequence[str | None], form: CallForm = PLAIN) -> list[Slot]:
        """Ask each prompt's model about it, and return a slot for each. What is refused is so in its own slots.

        Raises:
            DoorRefusal: all of them were; see `ask`.
        """
        places: dict[str | None, list[int]] = {}
        for place, model in enumerate(models):
            places.setdefault(model, []).append(place)
        if len(places) == 1:
            return await self.ask(prompts, models[0], form)
        slots: list[Slot] = [{}] * len(prompts)
        room, refusals = Room.of(self.options.reply_bytes), list[DoorRefusal]()

        async def ask(model: str | None, numbers: list[int]) -> None:
            try:
                answers = await self.ask([prompts[number] for number in numbers], model, form, room)
            except DoorRefusal as refusal:
                refusals.append(refusal)
                answers = [failed(refusal.type, str(refusal), refusal.kind) for _ in numbers]
            for number, slot in zip(numbers, answers, strict=True):
                slots[number] = slot

        known = set(self._broker.routes_of(self._payer.tenant).models) | {None}
        for model in places.keys() - known:
            await ask(model, places[model])
        async with asyncio.TaskGroup() as group:
            for model in places.keys() & known:
                group.create_task(ask(model, places[model]))
        if len(refusals) == len(places) > 0:
            raise refusals[0]
        return slots

    async def ask(
        self, prompts: list[str], model: str | None, form: CallForm = PLAIN, room: Room | None = None
    ) -> list[Slot]:
        """Ask a model about every prompt, and return a slot for each, in order: `ok` or `error`.

        Identical prompts are asked once, unless the calls are to be fresh. Where the budget or the model can take no
        further call, those that were not sent yet get the same error as the one that found out.

        Raises:
            DoorRefusal: there is no such model; too many calls have failed; or not one of the prompts could be paid, or
                sent. Nothing was told then.
        """
        named = model if model is not None else self.options.model
        check_model(self._broker.routes_of(self._payer.tenant), named, "llm_query")
        refusal = self._too_many_failed()
        if refusal is not None and prompts:
            raise refusal.error
        batch = Batch.of(named, prompts, room or Room.of(self.options.reply_bytes), each=form.fresh)
        keyed = await self._recall(batch, form.digest(named, self.options.max_tokens), remembered=not form.fresh)
        most, batch.alone = self.options.most_prompts, len(keyed) == 1
        for part in (keyed[start : start + most] for start in range(0, len(keyed), most)):
            if batch.alone:
                await self._send_alone(batch, form, *part[0])
                break
            if batch.refusal is None:
                batch.refusal = await self._hopeless(batch, form, [asking for asking, _ in part])
            await self._send(batch, form, part)
            if batch.refusal is not None:
                break
        self._tally.not_made(batch.unanswered)
        return batch.finished()

    async def _recall(self, batch: Batch, digest: bytes, *, remembered: bool) -> list[tuple[Asking, bytes]]:
        """Answer what is known already, where it may be. Return the other prompts, with their keys."""
        unknown: list[tuple[Asking, bytes]] = []
        for asking in batch.askings:
            key = hashlib.sha256(digest + asking.prompt.encode("utf-8", "replace")).digest()
            known = self._memo.get(key) if remembered else None
            if known is None:
                unknown.append((asking, key))
            else:
                self._remembered(batch, asking, known, len(asking.places))
            await self._pace.wait(self._payer.tenant)
            await asyncio.sleep(0)  # others have their turn between the hashes of two long prompts
        return unknown

    async def _hopeless(self, batch: Batch, form: CallForm, askings: list[Asking]) -> Refusal | None:
        """Say why not one of the prompts can be sent, if so.

        Raises:
            DoorRefusal: so it is, and there is no answer to any other prompt of the batch.
        """
        shortest = min((asking.prompt for asking in askings), key=_size)
        request = self._request(batch.model, shortest, form)
        lowest = self._memo.outputs(batch.model).lowest(request.max_tokens)
        await self._owed.settled()
        try:
            async with self._places:
                await self._broker.check(replace(request, max_tokens=lowest), self._payer)
        except (BudgetExceeded, RouteUnavailable) as error:
            refusal = self._failed(batch, error)
        except ProviderError:  # the shortest is no text that can be sent; others may be
            return None
        else:
            return None
        if batch.unanswered == len(batch.slots):
            raise refusal.error
        return refusal

    async def _send_alone(self, batch: Batch, form: CallForm, asking: Asking, key: bytes) -> None:
        """Ask about the only prompt.

        Raises:
            DoorRefusal: that cannot be, and there is no answer to any other prompt of the batch.
        """
        await self._pace.wait(self._payer.tenant)
        async with self._places:
            batch.refusal = batch.refusal or self._too_many_failed()
            if batch.refusal is None:
                await self._one(batch, form, asking, key)

    async def _send(self, batch: Batch, form: CallForm, askings: Sequence[tuple[Asking, bytes]]) -> None:
        """Ask about the prompts, in their order, until one finds that it is of no use."""
        making: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            try:
                for asking, key in askings:
                    await self._pace.wait(self._payer.tenant)
                    await self._places.acquire()
                    batch.refusal = batch.refusal or self._too_many_failed()
                    if batch.refusal is not None:
                        self._places.release()
                        break
                    one = group.create_task(self._one(batch, form, asking, key))
                    one.add_done_callback(lambda _: self._places.release())
                    making.add(one)
                    one.add_done_callback(making.discard)
                if making:
                    await asyncio.wait([*making])
            except asyncio.CancelledError:
                await run_to_completion(self._cancel_all(making))
                raise

    async def _cancel_all(self, calls: Iterable[asyncio.Task[None]]) -> None:
        """Cancel calls, and wait until they have ended. To end hundreds at once would keep everybody else waiting.

        First those without a hold, for which there is little to do: they would be sent as others make room for them.
        """
        under_way, end = list(calls), time.monotonic() + CANCELLING_SECONDS
        for some in _groups([task for task in under_way if task not in self._held]):
            _cancel(some)
            await asyncio.sleep(0)
        for some in _groups([task for task in under_way if task in self._held]):
            with suppress(TimeoutError):
                async with asyncio.timeout(end - time.monotonic()):
                    await self._pace.wait(self._payer.tenant)
            _cancel(some)
            await asyncio.sleep(0)
        if under_way:
            await asyncio.wait(under_way)

    async def _one(self, batch: Batch, form: CallForm, asking: Asking, key: bytes) -> None:
        if form.fresh:
            if batch.refusal is None:
                await self._paid(batch, form, asking, key)
            return
        async with self._memo.turn(key):
            known = self._memo.get(key)
            if known is not None:  # an identical call was under way
                self._remembered(batch, asking, known, len(asking.places))
            elif batch.refusal is None:
                await self._paid(batch, form, asking, key)

    async def _paid(self, batch: Batch, form: CallForm, asking: Asking, key: bytes) -> None:
        """Have a prompt answered. Where the answer was cut off because the budget let it be no longer, ask again."""
        lowering, shorter = Lowering(self._memo.outputs(batch.model)), None
        while True:
            request = self._request(batch.model, asking.prompt, form, lowering)
            call = Call(_new_id(), batch.model, len(asking.prompt) + len(form.system))
            try:
                done = await self._made(call, request)
            except (CallFailed, BudgetError) as error:
                refusal = self._failed(batch, error)
                if batch.alone and shorter is None and not call.told and _is_refused(error):
                    self.count -= 1  # it was none
                    if batch.unanswered == len(batch.slots):
                        raise refusal.error from None
                    batch.refusal = refusal
                    return
                spent = error.spent if isinstance(error, CallFailed) else Amounts()
                self._tally.started(call)
                self._tally.ended(call, spent, str(error))
                if shorter is not None:
                    self._answered(batch, asking, key, shorter)
                    return
                batch.fill(asking, refusal.slot)
                if self._is_lasting(error):
                    batch.refusal = batch.refusal or refusal
                return
            bound = done.reply.max_tokens
            if done.reply.stopped == "length" and bound < request.max_tokens:
                self._tally.ended(call, done.spent, f"cut off at {bound} tokens for want of room in the budget")
                lowering, shorter = lowering.raised(bound), done
                continue
            self._tally.answered(call, done.model, done.spent, len(done.reply.text))
            self._answered(batch, asking, key, done)
            for note in form.notes(batch.model, self._broker.routes.route(batch.model), self.options.max_tokens):
                self._tally.note(note, len(asking.places))
            return

    async def _made(self, call: Call, request: ModelRequest) -> Completion:
        """Make a call, and tell of its start, once it is paid for, and of its end where that is a cancellation.

        Raises:
            CallFailed, BudgetError: it has none.
        """
        self.count += 1
        texts = [text for text in (request.system, request.messages[0].content) if text]
        try:
            with charged(self._bill):
                making = self._broker.complete(
                    request,
                    self._payer,
                    deadline=self.options.deadline,
                    call_id=call.id,
                    ahead=self._owed.patience,
                    begun=partial(self._begun, call),
                )
                done = await measured(making, self._bill)
        except asyncio.CancelledError:
            if call.held:
                await run_to_completion(self._cancelled(call))
            else:
                self._given_up(call, Amounts())
            raise
        except (CallFailed, BudgetError) as error:
            if isinstance(error, CallFailed) and error.billed:
                self._tracer.trace(call.id, texts, self._report)
            raise
        if done.settling is not None:
            self._owed.add(done.settling)
        self._tracer.trace(call.id, texts, self._report)
        return done

    def _request(self, model: str, prompt: str, form: CallForm, lowering: Lowering | None = None) -> ModelRequest:
        return form.request(model, prompt, self.options.max_tokens, lowering)

    def _answered(self, batch: Batch, asking: Asking, key: bytes, done: Completion) -> None:
        """Give a prompt's slots what a model answered. One that is empty is an error; one cut off is not remembered."""
        reply, copies = done.reply, len(asking.places)
        if not reply.text.strip():
            self._tally.failed += 1
            self._failures.count += 1
            batch.fill(asking, _empty(batch.model, done).slot)
            return
        answer = CachedAnswer(reply.text, done.model)
        if reply.stopped == "length":
            end = f"was cut off at {reply.max_tokens} tokens: its end is missing, and `.cut` is True"
            self._tally.note(f"the answer of {batch.model} {end}", copies)
        else:
            self._memo.put(key, answer)
        self._remembered(batch, asking, answer, copies - 1, reply.max_tokens if reply.stopped == "length" else 0)

    def _remembered(self, batch: Batch, asking: Asking, answer: CachedAnswer, calls: int, cut_at: int = 0) -> None:
        """Answer a prompt in all its slots, of which so many are answered from memory."""
        self.count += calls
        for _ in range(calls):
            self._tally.from_memory(
                Call(_new_id(), batch.model, len(asking.prompt), told=False), answer.model, len(answer.text)
            )
        batch.answer(asking, answer.text, cut_at)

    def _begun(self, call: Call) -> None:
        call.held = True
        task = asyncio.current_task()
        if task is not None and task not in self._held:
            self._held.add(task)
            task.add_done_callback(self._held.discard)
        self._tally.started(call)

    async def _cancelled(self, call: Call) -> None:
        await self._pace.wait(self._payer.tenant)  # hundreds may be cancelled at once
        self._given_up(call, await self._broker.cost(call.id))

    def _given_up(self, call: Call, spent: Amounts) -> None:
        self._tally.started(call)
        self._tally.ended(call, spent, "cancelled")

    # ---- failures ------------------------------------------------------------------------------------------------

    def _failed(self, batch: Batch, error: ProviderError | BudgetError) -> Refusal:
        """Count a failure, and return what the guest is told of it."""
        self._tally.failed += 1
        self._failures.count += 1
        words = cut(f"{batch.model}: {error}", MAX_ERROR)
        if isinstance(error, BudgetError):
            return Refusal("LimitExceeded", words)
        return Refusal("ModelError", words, error.failure)

    def _is_lasting(self, error: CallFailed | BudgetError) -> bool:
        """Whether the other calls of a batch would fail in the same way."""
        if isinstance(error, CallFailed):
            return error.failure in _BROKEN or not seconds_left(self.options.deadline)
        return isinstance(error, BudgetExceeded)

    def _too_many_failed(self) -> Refusal | None:
        of_turn, in_all = self.options.most_failed, self.options.most_failed_in_all
        for count, most, name, whose in (
            (self._tally.failed, of_turn, "failed_calls", "turn"),
            (self._failures.count, in_all, "run_failed_calls", "run or session"),
        ):
            if count >= most:
                words = f"{count} model calls of this {whose} have failed, and it may make no more"
                return Refusal("LimitExceeded", f"{words}; the limit is {most} ({name})")
        return None


def _groups(tasks: Iterable[asyncio.Task[None]]) -> Iterator[list[asyncio.Task[None]]]:
    """Yield tasks, a few at a time."""
    left = iter(tasks)
    while some := list(islice(left, CANCELLED_AT_ONCE)):
        yield some


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8. Most texts are ASCII, and are not copied for it."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _is_refused(error: CallFailed | BudgetError) -> bool:
    """Whether a call that has no hold was refused for what no other call in flight can change."""
    return error.failure is Failure.UNAVAILABLE if isinstance(error, CallFailed) else isinstance(error, BudgetExceeded)


def _new_id() -> str:
    return "call_" + secrets.token_hex(16)


def _empty(model: str, done: Completion) -> Refusal:
    reply = done.reply
    if reply.stopped == "length":
        words = f"all {reply.max_tokens} tokens it may have were used before it said anything; raise max_tokens"
        return Refusal("AnswerCut", f"{model}: the answer is empty: {words}", "empty")
    if reply.stopped == "refusal":
        return Refusal("ModelError", f"{model}: it declined to answer", Failure.REFUSED)
    return Refusal("ModelError", f"{model}: the answer is empty", "empty")


def seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline on `time.monotonic()`, never below 0."""
    return max(0.0, deadline - time.monotonic())
