"""Two more providers: a class, and an entry each in the registry. To be imported before settings.

"toy" has prices that are stated; "resold" has those of Anthropic's models, under the same names.
"""

from __future__ import annotations

from rlm_server.broker.provider import ModelReply, ModelRequest
from rlm_server.broker.providers.registry import PROVIDERS, PriceFamily, ProviderSpec
from rlm_server.ledger import Usage


class ToyProvider:
    """Answers a node with code that asks a sub-model, and everything else with what it was asked and its key."""

    def __init__(self, *, api_key: str) -> None:
        self.key = api_key

    async def complete(self, request: ModelRequest) -> ModelReply:
        said = request.messages[-1].content
        text = "```repl\nFINAL(llm_query('hello'))\n```" if request.system else f"{said} from {self.key}"
        return ModelReply(text, Usage(input=1_000, output=100))

    async def close(self) -> None:
        pass


TOY = ProviderSpec(
    name="toy",
    implementation="tests.config.toy_providers:ToyProvider",
    key_variable="TOY_KEY",
    prices=PriceFamily(cache_write_percent=150),
    root_model="toy-large",
    sub_model="toy-small",
)
RESOLD = ProviderSpec(
    name="resold",
    implementation="rlm_server.broker.providers.anthropic:AnthropicProvider",
    key_variable="RESOLD_KEY",
    base_url="http://127.0.0.1:9",
    prices=PROVIDERS["anthropic"].prices,
    root_model="claude-haiku-5-5",
)
PROVIDERS.update(toy=TOY, resold=RESOLD)
