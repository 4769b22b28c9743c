"""Which models this server offers: those there is a key for, those the operator lists, and the scripted stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from rlm_server.broker.prices import Price, Prices, Rates
from rlm_server.broker.providers import scripted
from rlm_server.broker.providers.anthropic import AnthropicProvider
from rlm_server.broker.providers.openai import OpenAIProvider
from rlm_server.broker.providers.scripted import Script, ScriptedProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.config import CompatibleModel, ConfigError, Settings, nano

SCRIPTED_PRICE = Price(Rates(nano(Decimal(1)), nano(Decimal(5))))
"""Simulated: $1 for a million tokens of input, $5 of output, so that budgets can be seen at work."""

PREFERRED = (
    ("anthropic", "claude-sonnet-5-5", "claude-haiku-5-5"),
    ("openai", "gpt-6-sol", "gpt-6-luna"),
)
"""Root and sub-model where the configuration names none, by the first provider there is a key for."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models on offer, their prices, and those used where a request names none."""

    routes: Routes
    prices: Prices
    model: str
    sub_model: str


def offered(settings: Settings, scripts: Mapping[str, Script]) -> Models:
    """Put together what the settings allow.

    Raises:
        ConfigError: a default model is not among those offered.
    """
    stated = {(f"compatible:{name}", m.upstream or name): _stated(m) for name, m in settings.models.items()}
    stated |= {(scripted.NAME, name): SCRIPTED_PRICE for name in scripts}
    prices = Prices.load(stated)
    routes: dict[str, Route] = {}
    if key := settings.anthropic_api_key.get_secret_value():
        routes |= _priced("anthropic", AnthropicProvider(api_key=key), prices)
    if key := settings.openai_api_key.get_secret_value():
        routes |= _priced("openai", OpenAIProvider(api_key=key), prices)
    for name, m in settings.models.items():
        provider = OpenAIProvider(api_key=m.api_key.get_secret_value(), base_url=m.base_url)
        upstream = m.upstream or name
        price = prices.price(f"compatible:{name}", upstream)
        routes[name] = Route(f"compatible:{name}", provider, upstream, price, m.context_window)
    played = ScriptedProvider(scripts)
    for name in scripts:
        routes[name] = Route(scripted.NAME, played, name, SCRIPTED_PRICE)
    return _with_defaults(Routes(routes), prices, settings, next(iter(scripts)))


def _with_defaults(routes: Routes, prices: Prices, settings: Settings, last: str) -> Models:
    model, sub_model = settings.model, settings.sub_model
    if not model:
        named = [(root, sub) for _, root, sub in PREFERRED if root in routes.models]
        listed = [(name, name) for name in settings.models]
        model, preferred_sub = (named + listed + [(last, last)])[0]
        sub_model = sub_model or preferred_sub
    sub_model = sub_model or model
    for field, name in (("model", model), ("sub_model", sub_model)):
        if name not in routes.models:
            raise ConfigError(f"{field}: {name!r} is not offered here; the models are: {', '.join(routes.models)}")
    return Models(routes, prices, model, sub_model)


def _priced(provider_name: str, provider: AnthropicProvider | OpenAIProvider, prices: Prices) -> dict[str, Route]:
    routes = {}
    for name in prices.models(provider_name):
        price, window = prices.price(provider_name, name), prices.context_window(provider_name, name)
        routes[name] = Route(provider_name, provider, name, price, window)
    return routes


def _stated(model: CompatibleModel) -> Price:
    return Price(Rates(nano(model.input_usd_per_million), nano(model.output_usd_per_million)))
