"""Reads the limits of a request: a tenant's own, which it may lower and never raise. Writes those in force."""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from rlm.v1 import types_pb2

from rlm_server.api import requests
from rlm_server.api.errors import InvalidField
from sandbox.limits import Limits, declared

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Declared = TypeVar("Declared", bound="DataclassInstance")

_DURATION = "google.protobuf.Duration"


def lowered(field: str, requested: Message, ceiling: Declared) -> Declared:
    """Return the limits: the tenant's, lowered where the request says so. What it does not say is the tenant's.

    The protocol calls counts `X_count` and durations `X_time` where limits are declared as `X`, `Xs` or `X_seconds`.
    """
    limits = declared(ceiling)
    changes: dict[str, float] = {}
    for one in requested.DESCRIPTOR.fields:
        if not _is_limit(one) or not requested.HasField(one.name):
            continue
        name, path = declared_name(one.name, limits), f"{field}.{one.name}"
        most, least = getattr(ceiling, name), min(limits[name].least, getattr(ceiling, name))
        value = getattr(requested, one.name)
        if one.message_type is not None:
            milliseconds = requests.duration(value, path)
            if not math.ceil(least * 1000) <= milliseconds <= most * 1000:
                raise InvalidField(path, f"must be from {least:.15g} to {most:.15g} s, not {milliseconds / 1000:.15g}")
            changes[name] = milliseconds / 1000
        elif not least <= value <= most:
            raise InvalidField(path, f"must be from {least:.15g} to {most:.15g}, not {value}")
        else:
            changes[name] = value
    return replace(ceiling, **changes)


def sandbox_limits(value: Limits) -> types_pb2.SandboxLimits:
    """Write what code may use, as far as the protocol names it."""
    limits, message = declared(value), types_pb2.SandboxLimits()
    for one in message.DESCRIPTOR.fields:
        limit = getattr(value, declared_name(one.name, limits))
        if one.message_type is not None:
            getattr(message, one.name).FromMilliseconds(round(limit * 1000))
        else:
            setattr(message, one.name, limit)
    return message


def declared_name(field: str, limits: Container[str]) -> str:
    """Return the name by which a limit is declared that the protocol names so."""
    count = re.sub("_count$", "", field)
    names = (field, re.sub("_time$", "_seconds", field), count, f"{count}s")
    return next(name for name in names if name in limits)


def _is_limit(field: Any) -> bool:
    return field.message_type is None or field.message_type.full_name == _DURATION
