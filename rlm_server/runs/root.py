"""The root of a run's tree: a node whose answer may have a schema, and which may answer directly, without a REPL."""

from __future__ import annotations

from rlm_server.broker.provider import Message
from rlm_server.repl.coverage import Looked
from rlm_server.runs import direct
from rlm_server.runs.asked import Strategy
from rlm_server.runs.cuts import beginning_of
from rlm_server.runs.events import NodeResumed, StrategyChosen, TurnCheckpointed
from rlm_server.runs.node import Node
from rlm_server.runs.state import NodeEnded, RunState
from rlm_server.runs.told.direct import prompt
from rlm_server.runs.typed import TypedAnswers, guard
from rlm_server.shares.held import TooMuchHeld
from rlm_server.shares.threads import Purpose
from sandbox.corpora.corpus import CorpusDamaged

BYTES_HELD = 4
"""Bytes of memory that a byte of a text takes that is sent whole: as it is read, as a message, and as a request."""


class Root(Node):
    """Runs the root of a run."""

    async def _work(self) -> str:
        self._typed = await TypedAnswers.of(self.tree)
        standing = self._record.past.standing
        if self._typed is not None and standing is not None:
            self._typed.refused_count, self._typed.best = standing.refused, standing.best
        if self._record.past.concluded:  # and was not told
            return self._answered(self._draft.text)
        if self.tree.asked.strategy is Strategy.RLM or self._record.past.carried is not None:
            return await super()._work()
        if self._record.resumed:  # a node with a REPL has its first message
            return await (super()._work() if self._record.past.messages else self._answered_directly())
        chosen = await self._chosen()
        self.emit(chosen)
        return await (self._answered_directly() if chosen.strategy == "direct" else super()._work())

    async def _chosen(self) -> StrategyChosen:
        tree, asked, model = self.tree, self.tree.asked, self.task.model
        route = tree.services.broker.routes.route(model)
        reading = direct.Reading.of(tree.content, self.task.question, asked)
        left = await self._purse.left()
        return direct.choose(asked.strategy, model, route, reading, left, tree.limits.root_tokens)

    async def _answered_directly(self) -> str:
        """Have the model answer from the whole text, which it is sent."""
        held, tenant = self.tree.services.shares.held, self.tree.run.tenant
        size = BYTES_HELD * self.tree.content.size_bytes if self.tree.content is not None else 0
        try:
            held.take(tenant, size, "the text of a run that is answered directly")
        except TooMuchHeld as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        try:
            return await self._replied(await self._whole_text())
        except (CorpusDamaged, OSError, EOFError) as error:
            raise NodeEnded(RunState.FAILED, str(error)) from None
        finally:
            held.give_back(tenant, size)

    async def _whole_text(self) -> str | None:
        tree, node_context = self.tree, self.task.node_context
        if node_context is None:
            return None
        corpus, threads = node_context.corpus, tree.services.shares.threads
        text = await threads.run(Purpose.READING, tree.run.tenant, lambda _: direct.whole_text(corpus))
        self._coverage = await tree.saw(node_context, Looked(corpus), (1 << corpus.blocks) - 1)
        return text

    async def _replied(self, text: str | None) -> str:
        """Ask until there is an answer: a reply that is none goes back to the model, as a turn."""
        limits, asked = self.tree.limits, self.tree.asked
        self._system, message = prompt(self.task.question, text, asked.answer_schema, asked.instructions)
        self._messages = [message]
        if self._record.resumed:
            self.emit(NodeResumed(self.tree.resumed))
        for turn in range(1, limits.max_turns + 1):
            self._left_last = await self._purse.left()
            await self._begin_turn(turn)
            read = await direct.read(await self._ask(limits.root_tokens, turn), limits.root_tokens)
            self.emit(TurnCheckpointed(0, self._coverage))
            told = await self._not_taken(read)
            if told is None:
                self._conclude(turn, read.said)
                return self._answered(self._draft.text)
            self._messages += [Message("assistant", read.said or "(no text)"), Message("user", "\n\n".join(told))]
        raise NodeEnded(RunState.EXHAUSTED, f"max_turns: no answer after {limits.max_turns} turns")

    async def _not_taken(self, read: direct.Read) -> list[str] | None:
        """Take a reply as the answer, or return what the model is told of why it is not."""
        self._draft.text = beginning_of(read.said, self.tree.limits.answer_bytes) or self._draft.text
        if read.nothing is not None:
            return [read.told, *self._guards.look((), (), read.nothing)]
        if self._typed is None:
            return None
        verdict = await self._typed.judge(read.said)
        if verdict.violations:
            noticed = self._guards.look((), (), guard(verdict))
            return [self._typed.refuse(verdict, is_reply=True), *noticed]
        self._draft.text = verdict.answer
        return None
