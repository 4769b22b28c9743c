"""What a server offers, made up."""

from __future__ import annotations

from typing import Any, cast

from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.broker.routes import Route, Routes


def routes(*models: str) -> Routes:
    """Routes to some models, none of which answers."""
    return Routes({model: Route("scripted", ScriptedProvider({}), model, cast("Any", None)) for model in models})
