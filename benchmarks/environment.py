"""What a server that is measured has from outside."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """Return this process's environment without any setting or provider's key that could change what is measured."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RLM_") and name not in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")
    }
