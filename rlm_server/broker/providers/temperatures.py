"""Which models take a temperature, and up to which: from others it is kept, as they refuse a request that has one."""

from __future__ import annotations

import re

MOST = 2.0
"""The highest temperature that any model takes."""

_TAKERS = {
    # Those before Opus 4.7. It and all newer models answer "`temperature` is deprecated for this model" (400).
    "anthropic": (
        re.compile(
            r"claude-(2|v1|3|(haiku|sonnet|opus)-3|4[.-][0-6]|4-(opus|sonnet)|(haiku|sonnet|opus)-4(?![.-][7-9]\b))"
        ),
        1.0,
    ),
    # Those that do not reason. The others answer "only the default (1) value is supported" (400).
    "openai": (re.compile(r"gpt-3\.5|gpt-35|gpt-4|chatgpt-4o"), 2.0),
}
"""By provider, the beginnings of the names of its models that take one, and the most they take."""


def taken(provider: str, model: str, asked: float | None) -> float | None:
    """Return what a model is sent of a temperature that was asked for: it, the most it takes, or None.

    `model` is the name the provider knows it by. A provider that is not in the table is sent what was asked for.
    """
    if asked is None or provider not in _TAKERS:
        return asked
    takers, most = _TAKERS[provider]
    return min(asked, most) if takers.match(model) else None
