"""What requests get where they say nothing, and the most they may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.ledger import Limit
from rlm_server.runs.tree import RunLimits


@dataclass(frozen=True, slots=True)
class Defaults:
    """The server's defaults. `limits` are ceilings as well; the first of `images` is the default one."""

    model: str
    sub_model: str
    budget: Limit
    limits: RunLimits
    images: tuple[str, ...]
