"""A client that plays the model of a run: its calls wait as those of tools do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlm_server.broker.provider import DeadlinePassed, Failure, ModelReply, ModelRequest, ProviderError
from rlm_server.repl.events import ModelCallRequested, ToolCallAnswered
from rlm_server.shares.held import TooMuchHeld
from rlm_server.tools.waiting import NoAnswer, ResultRefused, Submitted, WaitingCalls

MAX_ASKED_BYTES = 960 << 10
"""Bytes of UTF-8 of what a client is asked as a model: one message of the protocol has all of it."""


@dataclass(frozen=True, slots=True)
class ClientSeat:
    """Asks the client of one run for one of its nodes. A reply may have `most_bytes` of UTF-8."""

    run: str
    waiting: WaitingCalls
    emit: Callable[[ModelCallRequested | ToolCallAnswered], None]
    seconds_left: Callable[[], float]
    most_bytes: int

    async def ask(self, request: ModelRequest, seconds: float) -> ModelReply:
        """Have a client answer, within so many seconds and what is left of the node's time.

        Raises:
            ProviderError: nobody did (DeadlinePassed), a client refused (REFUSED), the prompt is longer than a message
                may be (TOO_LONG), or the tenant has too much of the server's memory (INTERNAL). It costs nothing.
        """
        texts = (request.system, *(message.content for message in request.messages))
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if size > MAX_ASKED_BYTES:
            words = f"a client that plays the model can be asked {MAX_ASKED_BYTES} bytes of UTF-8, not {size}"
            raise ProviderError(Failure.TOO_LONG, words, billed=False)
        seconds = min(seconds, self.seconds_left())
        try:
            submitted = await self.waiting.ask(
                self.run,
                lambda call, deadline: ModelCallRequested(
                    call, request.model, request.system, request.messages, request.max_tokens, deadline
                ),
                2 * size,
                seconds,
                self._check,
                self.emit,
            )
        except NoAnswer:
            raise DeadlinePassed(f"no client answered within {seconds:g} s", billed=False) from None
        except TooMuchHeld as error:
            raise ProviderError(Failure.INTERNAL, str(error), billed=False) from None
        if submitted.reply is None:
            raise ProviderError(Failure.REFUSED, "the client that plays the model gave an error", billed=False)
        return submitted.reply

    async def _check(self, submitted: Submitted) -> None:
        if submitted.result is not None:
            raise ResultRefused("result_json", "is for a tool's call, and this is a model's: answer with model")
        text = submitted.error if submitted.reply is None else submitted.reply.text
        size = len(text.encode("utf-8", "replace"))
        if size > self.most_bytes:
            field = "error" if submitted.reply is None else "model.text"
            words = f"may have {self.most_bytes} bytes of UTF-8, not {size} (tool_result_bytes)"
            raise ResultRefused(field, words)
