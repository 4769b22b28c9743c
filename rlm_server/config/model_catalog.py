"""Which models this server offers: those there is a key for, those the operator lists, and the scripted stand-in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from rlm_server.broker.prices.table import Prices
from rlm_server.broker.provider import Provider
from rlm_server.broker.providers import client, scripted
from rlm_server.broker.providers.client import ClientProvider
from rlm_server.broker.providers.registry import COMPATIBLE, PROVIDERS, with_keys
from rlm_server.broker.providers.scripted import Script, ScriptedProvider
from rlm_server.broker.routes import FailureCost, Route, Routes
from rlm_server.config.price_list import CLIENT_PRICE, SCRIPTED_PRICE, PriceList
from rlm_server.config.settings import CompatibleModel, ConfigError, Settings, TenantSettings
from rlm_server.tenants.policy import is_pattern

SCRIPTED_WINDOW: int | None = None
"""Tokens that a script reads at once. It reads by program, so there is no such number."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models on offer, their prices, and those used where a request names none."""

    routes: Routes
    prices: Prices
    model: str
    sub_model: str


def build_models(settings: Settings, scripts: Mapping[str, Script]) -> Models:
    """Put together what the settings allow.

    Raises:
        ConfigError: a model has no price, or what is stated of prices is wrong; a default model or a fallback is not
            among those offered.
    """
    prices = PriceList.of(settings, scripts).prices
    _check_priced(settings.models, prices)
    routes: dict[str, Route] = {}
    for spec in with_keys():
        if key := settings.api_key(spec):
            routes = _priced(spec.name, spec.provider(key), prices) | routes
    routes |= _compatible(settings.models, prices)
    played = ScriptedProvider(scripts)
    for name in scripts:
        routes[name] = Route(scripted.NAME, played, name, SCRIPTED_PRICE, SCRIPTED_WINDOW)
    if settings.client_model:
        plays = ClientProvider(settings.call_limits.call_seconds)
        routes[client.NAME] = Route(client.NAME, plays, client.NAME, CLIENT_PRICE, shared=False)
    routes = _with_failure_costs(routes, settings.failure_costs)
    routes |= _with_fallbacks(routes, settings.fallbacks)
    return _with_defaults(Routes(routes), prices, settings, next(iter(scripts)))


def _with_defaults(routes: Routes, prices: Prices, settings: Settings, last: str) -> Models:
    model, sub_model = settings.model, settings.sub_model
    if not model:
        own = [spec for spec in with_keys() if settings.api_key(spec)]
        named = [(spec.root_model, spec.sub_model) for spec in own if spec.root_model in routes.models]
        listed = [(name, name) for name in settings.models]
        model, preferred_sub = (named + listed + [(last, last)])[0]
        sub_model = sub_model or preferred_sub
    sub_model = sub_model or model
    for field, name in (("model", model), ("sub_model", sub_model)):
        _check_offered(field, name, routes.models)
    _check_tenants(settings.tenants, routes.models)
    return Models(routes, prices, model, sub_model)


def _compatible(models: Mapping[str, CompatibleModel], prices: Prices) -> dict[str, Route]:
    """The routes to compatible endpoints. One endpoint with one key is one provider, named by its first model."""
    routes: dict[str, Route] = {}
    providers: dict[tuple[str, str], tuple[str, Provider]] = {}
    for name, m in models.items():
        url, key = m.base_url, m.api_key.get_secret_value()
        if (url, key) not in providers:
            providers[url, key] = f"{COMPATIBLE.name}:{name}", COMPATIBLE.provider(key, url)
        provider_name, provider = providers[url, key]
        price = prices.price(COMPATIBLE.name, name)
        routes[name] = Route(provider_name, provider, m.upstream or name, price, m.context_window)
    return routes


def _with_failure_costs(routes: Mapping[str, Route], costs: Mapping[str, str]) -> dict[str, Route]:
    """The routes, each with what its failures cost: a model's own goes before its provider's."""
    known = {*PROVIDERS, *routes, *(route.provider_name for route in routes.values())}
    for name, cost in costs.items():
        if cost not in set(FailureCost):
            raise ConfigError(f"failure_costs.{name}: must be full, input or none, not {cost[:50]!r}")
        if name not in known:
            raise ConfigError(
                f"failure_costs.{name}: there is no such provider or model; there are: {', '.join(sorted(known))}"
            )

    def cost_of(name: str, route: Route) -> FailureCost:
        family = route.provider_name.partition(":")[0]
        said = (costs.get(of) for of in (name, route.provider_name, family))
        return FailureCost(next((cost for cost in said if cost is not None), FailureCost.FULL))

    return {name: replace(route, failure_cost=cost_of(name, route)) for name, route in routes.items()}


def _with_fallbacks(routes: Mapping[str, Route], fallbacks: Mapping[str, list[str]]) -> dict[str, Route]:
    """The routes that have fallbacks."""
    for name, others in fallbacks.items():
        for model in (name, *others):
            _check_offered(f"fallbacks.{name}", model, routes)
        if name in others:
            raise ConfigError(f"fallbacks.{name}: a model cannot answer in its own place")
    return {name: replace(routes[name], fallbacks=tuple(others)) for name, others in fallbacks.items()}


def _check_tenants(tenants: Mapping[str, TenantSettings], models: Collection[str]) -> None:
    """Refuse a model of a tenant's that is not offered. What is a pattern may have none today."""
    for name, own in tenants.items():
        fallbacks = own.fallbacks if isinstance(own.fallbacks, list) else []
        for field, listed in (("fallbacks", fallbacks), ("models", own.models)):
            for model in listed:
                if not is_pattern(model):
                    _check_offered(f"tenants.{name}.{field}", model, models)


def _check_offered(field: str, model: str, models: Collection[str]) -> None:
    """Refuse a model that there is no route for: it has no key here, or no price."""
    if model not in models:
        raise ConfigError(
            f"{field}: {model!r} is not offered here; the models are: {', '.join(sorted(models))}; another one of a "
            "provider's is offered once it has a price: rlm-server prices set PROVIDER/MODEL --input USD --output USD"
        )


def _check_priced(models: Collection[str], prices: Prices) -> None:
    if unpriced := sorted(set(models) - set(prices.models(COMPATIBLE.name))):
        raise ConfigError(
            f"no price is stated for {', '.join(f'models.{name}' for name in unpriced)}: give input_usd_per_million "
            "and output_usd_per_million there, 0 where it costs nothing, or run "
            f"rlm-server prices set {COMPATIBLE.name}/{unpriced[0]} --input USD --output USD"
        )


def _priced(provider_name: str, provider: Provider, prices: Prices) -> dict[str, Route]:
    routes = {}
    for name in prices.models(provider_name):
        price, window = prices.price(provider_name, name), prices.context_window(provider_name, name)
        routes[name] = Route(provider_name, provider, name, price, window)
    return routes
