"""Which models take stop sequences: from others they are kept, as they refuse a request that has some."""

from __future__ import annotations

from rlm_server.broker.providers.temperatures import taken


def takes_stops(provider: str, model: str) -> bool:
    """Say whether a model takes some. `model` is the name the provider knows it by.

    All of Anthropic's do, and whatever is behind a compatible endpoint is taken to. Of OpenAI's, those that reason
    answer "Unsupported parameter: 'stop'" (400): they are the same that take no temperature.
    """
    return provider != "openai" or taken(provider, model, 1.0) is not None
