"""Reads the limits of a request: a tenant's own, which it may lower and never raise."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from rlm_server.api.errors import InvalidField
from sandbox.limits import declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Declared = TypeVar("Declared", bound="DataclassInstance")


def lowered(field: str, requested: Message, ceiling: Declared) -> Declared:
    """Return the limits: the tenant's, lowered where the request says so. It names them as they are declared.

    What a limit has in seconds a request may say in milliseconds. 0 means the tenant's, except where the request can
    tell 0 from nothing.
    """
    limits = declared(ceiling)
    changes: dict[str, float] = {}
    for one in requested.DESCRIPTOR.fields:
        if one.message_type is not None:
            continue
        name, a_second = re.sub("_milliseconds$", "_seconds", one.name), 1000 if "_milliseconds" in one.name else 1
        value = getattr(requested, one.name)
        if not (requested.HasField(one.name) if one.has_presence else value):
            continue
        most = getattr(ceiling, name) * a_second
        least = min(math.ceil(limits[name].least * a_second), most)
        if not least <= value <= most:
            zero = "" if one.has_presence else f", or 0 for {most:.15g}"
            raise InvalidField(f"{field}.{one.name}", f"must be from {least:.15g} to {most:.15g}{zero}, not {value}")
        changes[name] = value / a_second if a_second > 1 else value
    return replace(ceiling, **changes)
