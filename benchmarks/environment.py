"""What a server that is measured has from outside."""

from __future__ import annotations

import os

from rlm_server.broker.providers.registry import with_keys


def environment() -> dict[str, str]:
    """Return this process's environment without any setting or provider's key that could change what is measured."""
    keys = {spec.key_variable for spec in with_keys()}
    return {name: value for name, value in os.environ.items() if not name.startswith("RLM_") and name not in keys}
