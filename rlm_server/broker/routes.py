"""Which provider serves which model: model name → route → provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from rlm_server.broker.prices.table import Price
from rlm_server.broker.provider import Provider
from rlm_server.broker.providers.lazy import LazyProvider
from rlm_server.ledger import Amounts


class UnknownModel(LookupError):
    """No route has this name. The message names the models that exist, so that a caller can choose one."""

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        super().__init__(f"there is no model {model[:60]!r}; the models are: {', '.join(known) or 'none'}")
        self.known = known


class FailureCost(StrEnum):
    """What a failure that may have been billed is counted as: its whole hold, its input at most, or nothing."""

    FULL = "full"
    INPUT = "input"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Route:
    """How one model is reached.

    `upstream` is the name the provider knows the model by. `context_window` is in tokens, where it is known.
    Routes with the same `provider_name` share one cap on calls at once. `fallbacks` are the names of models that may
    answer in its place, in order, where a tenant allows it. `failure_cost` is what the operator knows of how the
    provider bills failures.
    """

    provider_name: str
    provider: Provider
    upstream: str
    price: Price
    context_window: int | None = None
    fallbacks: tuple[str, ...] = ()
    failure_cost: FailureCost = FailureCost.FULL
    shared: bool = True
    """Whether tenants share what answers. Where it is each tenant's own, no tenant waits for another's calls."""

    def cost_of_failure(self, held: Amounts, max_tokens: int) -> Amounts:
        """Return what a request costs that failed, and may have been billed. `held` is its worst case."""
        match self.failure_cost:
            case FailureCost.FULL:
                return held
            case FailureCost.INPUT:
                input_tokens = held.tokens - max_tokens
                return Amounts(self.price.bound(input_tokens, 0), input_tokens, held.calls)
            case FailureCost.NONE:
                return Amounts()

    @property
    def ready(self) -> bool:
        """Whether the provider can be asked at once."""
        return not isinstance(self.provider, LazyProvider) or self.provider.made

    async def prepare(self) -> None:
        """Have the provider ready to be asked, which takes seconds the first time. Nothing is sent.

        Raises:
            ProviderError: it cannot be made ready (INTERNAL).
        """
        if isinstance(self.provider, LazyProvider):
            await self.provider.ready()


class Routes:
    """The table of routes, by the names that callers use."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)

    @property
    def models(self) -> tuple[str, ...]:
        """The names that callers may use, sorted."""
        return tuple(sorted(self._routes))

    def route(self, model: str) -> Route:
        """The route of a model.

        Raises:
            UnknownModel: there is none.
        """
        try:
            return self._routes[model]
        except KeyError:
            raise UnknownModel(model, self.models) from None

    def only(self, permitted: Callable[[str], bool]) -> Routes:
        """Those of the routes whose names are permitted. They have the same providers, and are not closed by it."""
        return Routes({name: route for name, route in self._routes.items() if permitted(name)})

    async def close(self) -> None:
        """Close every provider, once each."""
        for provider in {id(route.provider): route.provider for route in self._routes.values()}.values():
            await provider.close()
