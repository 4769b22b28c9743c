"""What a guest asks of models: read from its request, checked, and put as every model is asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rlm_server.broker.outputs import Lowering
from rlm_server.broker.provider import Message, ModelRequest
from rlm_server.broker.providers.stops import takes_stops
from rlm_server.broker.providers.temperatures import MOST, taken
from rlm_server.broker.routes import Route, Routes, UnknownModel
from rlm_server.broker.sampling import MAX_STOP, MAX_STOPS, Sampling, wrong_stops
from rlm_server.repl.bounds import MAX_NAME, MAX_REASON, cut
from sandbox.door import DoorRefusal, HostCall, Json, Kind

MAX_SYSTEM = 100_000
"""Characters of the system prompt of an `llm_query`, which every prompt of a batch is sent with."""

TOKENS = Kind("a positive int", lambda value: type(value) is int and 1 <= value < 1 << 32, "ValueError")
TEMPERATURE = Kind(
    f"a number from 0 to {MOST:g}",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST,
    "ValueError",
)
STOPS = Kind(
    f"at most {MAX_STOPS} str of at most {MAX_STOP} characters, none of which is white space alone",
    lambda value: not wrong_stops(value),
    "ValueError",
)
MODELS = Kind(
    "a str, or a list of str",
    lambda value: isinstance(value, str) or (isinstance(value, list) and all(map(_may_be_named, value))),
)


def _may_be_named(value: Json) -> bool:
    return value is None or isinstance(value, str)


@dataclass(frozen=True, slots=True)
class CallForm:
    """How prompts are asked about, besides the model: what is the same for all of a request.

    `max_tokens` is what the code asked for, which may be more than a call may have. `fresh` calls are not answered from
    memory.
    """

    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    fresh: bool = False

    @classmethod
    def usual(cls, sampling: Sampling) -> CallForm:
        """Return how prompts are asked about where code says nothing. `max_tokens` is among the limits of calls."""
        return cls(temperature=sampling.temperature, stop=sampling.stop)

    def said_in(self, call: HostCall) -> CallForm:
        """Return how a request asks: as it says, and else as usual.

        Raises:
            DoorRefusal: the system prompt is too long.
        """
        named = call.arguments
        system, temperature, stop = named.get("system") or "", named.get("temperature"), named.get("stop")
        if len(system) > MAX_SYSTEM:
            raise DoorRefusal("LimitExceeded", f"system may have {MAX_SYSTEM} characters, not {len(system)}")
        return CallForm(
            system,
            named.get("max_tokens"),
            self.temperature if temperature is None else float(temperature),
            self.stop if stop is None else tuple(stop),
            named.get("fresh") is True,
        )

    def tokens(self, most: int) -> int:
        """Return the most output that a call has, which may have `most`."""
        return most if self.max_tokens is None else min(self.max_tokens, most)

    def request(self, model: str, prompt: str, most: int, lowering: Lowering | None) -> ModelRequest:
        """Return what a model is asked, with `most` tokens of output at most."""
        return ModelRequest(
            model, (Message("user", prompt),), self.system, self.tokens(most), self.temperature, self.stop, lowering
        )

    def digest(self, model: str, most: int) -> bytes:
        """Return what tells calls apart besides their prompts."""
        said = f"{model}\0{self.tokens(most)}\0{self.temperature}\0{self.stop}\0{self.system}"
        return hashlib.sha256(said.encode("utf-8", "replace")).digest()

    def notes(self, model: str, route: Route, most: int) -> list[str]:
        """Say what of it calls to a model do not have."""
        said = []
        sent = taken(route.provider_name, route.upstream, self.temperature)
        if self.temperature is not None and sent is None:
            said.append(f"{model} takes no temperature, so it was asked without")
        elif sent != self.temperature:
            said.append(f"{model} takes a temperature of {sent:g} at most, so it was asked with that")
        if self.stop and not takes_stops(route.provider_name, route.upstream):
            said.append(f"{model} takes no stop sequences, so it was asked without")
        if self.max_tokens is not None and self.max_tokens > most:
            said.append(f"max_tokens may be {most} at most (sub_tokens), so it was that")
        return said


PLAIN = CallForm()


def model_named(call: HostCall) -> str | None:
    """Return the one model that a request names, or None.

    Raises:
        DoorRefusal: it is no text, or longer than a name may be.
    """
    if call.arguments.get("model") is None:
        return None
    name = call.text("model")
    if len(name) > MAX_NAME:
        raise DoorRefusal("ValueError", _too_long(call.op, name))
    return name


def models_named(call: HostCall, count: int) -> list[str | None]:
    """Return the model that a request names for each of so many prompts: one for all, or one for each.

    Raises:
        DoorRefusal: there are not as many.
    """
    named = call.arguments.get("model")
    if not isinstance(named, list):
        return [model_named(call)] * count
    if len(named) != count:
        raise DoorRefusal("ValueError", f"{count} prompts but {len(named)} models")
    return named


def check_model(routes: Routes, model: str, op: str = "") -> None:
    """Refuse a model that this server does not offer. What is too long for a name is not looked up."""
    try:
        if len(model) > MAX_NAME:
            raise DoorRefusal("ValueError", _too_long(op, model))
        routes.route(model)
    except UnknownModel as error:
        raise DoorRefusal("ValueError", cut(str(error), MAX_REASON)) from None


def _too_long(op: str, name: str) -> str:
    return f"{op}: model may have {MAX_NAME} characters, not {len(name)}: it is {name[:60]!r}…"
