"""How a run's models are to write: what of it goes with every call, and which models take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlm_server.broker.providers.stops import takes_stops
from rlm_server.broker.providers.temperatures import taken
from rlm_server.broker.routes import Route

MAX_STOPS = 4
"""Stop sequences of a call: as many as every provider takes."""

MAX_STOP = 100
"""Characters of a stop sequence."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How models are to write, where it is not left to them. `max_tokens` bounds the output of one call.

    A model stops before it would write one of `stop`.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def not_taken(self, model: str, route: Route) -> Iterator[tuple[str, str]]:
        """Yield what of it a model does not take: the name of it, and why."""
        if self.temperature is not None:
            sent = taken(route.provider_name, route.upstream, self.temperature)
            if sent is None:
                yield "temperature", f"the model {model} takes no temperature: leave it out"
            elif sent != self.temperature:
                yield "temperature", f"the model {model} takes a temperature of {sent:g} at most"
        if self.stop and not takes_stops(route.provider_name, route.upstream):
            yield "stop", f"the model {model} takes no stop sequences: leave them out"


def wrong_stops(stops: object) -> str:
    """Say what is wrong with stop sequences, or nothing."""
    if not isinstance(stops, list | tuple) or not all(isinstance(one, str) for one in stops):
        return "must be texts"
    if len(stops) > MAX_STOPS:
        return f"may have {MAX_STOPS} texts, not {len(stops)}"
    if any(not one.strip() for one in stops):
        return "a stop sequence must have more than white space"
    longest = max(map(len, stops), default=0)
    return f"a stop sequence may have {MAX_STOP} characters, not {longest}" if longest > MAX_STOP else ""
