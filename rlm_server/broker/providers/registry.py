"""Every provider of models in one table: its name, key, price family, class and default models.

To add one, write its class in a module beside this one, and add its entry here. The entry determines the setting of its
key, its prices, its models in the catalog, and what `doctor`, `prices` and the settings page show.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass

from rlm_server.broker.provider import Provider
from rlm_server.broker.providers.lazy import LazyProvider

OPENAI_CHAT = "rlm_server.broker.providers.openai:OpenAIProvider"
"""The class for every endpoint that speaks OpenAI's chat completions."""


@dataclass(frozen=True, slots=True)
class PriceFamily:
    """The prices of a provider. Providers with the same prices share one family.

    `name` is that of a family in the pinned table, as in genai-prices. Where it is empty nothing is pinned, and a model
    is offered once the operator states its price. `chat_models` are the beginnings of the names of models that a plain
    chat call reaches. `cache_write_percent` is the most that input written to the cache costs, in percent of other
    input. It is used where a stated price does not say.
    """

    name: str = ""
    chat_models: tuple[str, ...] = ()
    cache_write_percent: int = 100


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A provider.

    `name` is what prices, routes, metrics and the ledger call it; its key is the setting `{name}_api_key`.
    `implementation` is its class as `module:Class`, imported when the first call needs it; it is called with `api_key`,
    and with `base_url` where there is one. `key_variable` is the environment variable that its key has elsewhere; where
    it is empty, the provider has no key of its own, and its endpoints and models are those that the configuration
    lists. `base_url` is an OpenAI-compatible endpoint's; other classes know theirs. `root_model` and `sub_model` are
    used where nobody names one and no provider before it in the table has a key.
    """

    name: str
    implementation: str
    key_variable: str = ""
    base_url: str = ""
    prices: PriceFamily = PriceFamily()
    root_model: str = ""
    sub_model: str = ""

    @property
    def key_setting(self) -> str:
        """The name of the setting that holds its key."""
        return f"{self.name}_api_key"

    def provider(self, api_key: str, base_url: str = "") -> LazyProvider:
        """Return the provider with a key, at its own address unless another is given. Nothing is imported yet."""
        url = base_url or self.base_url

        def make() -> Provider:
            provider: Provider = pkgutil.resolve_name(self.implementation)(
                api_key=api_key, **({"base_url": url} if url else {})
            )
            return provider

        return LazyProvider(self.name, make)


COMPATIBLE = ProviderSpec("compatible", OPENAI_CHAT)
"""Stands for the endpoints the configuration lists; a model of theirs has the name that callers use."""


def _by_name(specs: Iterable[ProviderSpec]) -> dict[str, ProviderSpec]:
    return {spec.name: spec for spec in specs}


PROVIDERS = _by_name(
    [
        ProviderSpec(
            name="anthropic",
            implementation="rlm_server.broker.providers.anthropic:AnthropicProvider",
            key_variable="ANTHROPIC_API_KEY",
            prices=PriceFamily("anthropic", chat_models=("claude-",), cache_write_percent=125),
            root_model="claude-sonnet-5-5",
            sub_model="claude-haiku-5-5",
        ),
        ProviderSpec(
            name="openai",
            implementation=OPENAI_CHAT,
            key_variable="OPENAI_API_KEY",
            prices=PriceFamily("openai", chat_models=("gpt-", "chatgpt-", "o1", "o3", "o4"), cache_write_percent=125),
            root_model="gpt-6-sol",
            sub_model="gpt-6-luna",
        ),
        COMPATIBLE,
    ]
)
"""By name. Where two have a model of the same name and both have a key, the first has it."""


def with_keys() -> list[ProviderSpec]:
    """Return the providers with a key of their own, in the order of the table."""
    return [spec for spec in PROVIDERS.values() if spec.key_variable]
