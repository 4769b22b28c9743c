"""Who pays: for a model call, or for a turn of a sandbox."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Payer:
    """The account that holds are placed on, its tenant, and where in which run the spending happens."""

    account: str
    tenant: str
    run: str
    node: str
