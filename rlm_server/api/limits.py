"""Reads the limits of a request: a tenant's own, which it may lower and never raise. Writes those in force."""

from __future__ import annotations

import math
import re
from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from rlm.v1 import types_pb2

from rlm_server.api import requests
from rlm_server.api.errors import InvalidField
from rlm_server.api.field_checks import FieldChecks
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
    with FieldChecks() as check:
        for one in requested.DESCRIPTOR.fields:
            if _is_limit(one) and requested.HasField(one.name):
                name = declared_name(one.name, limits)
                bounds = min(limits[name].least, getattr(ceiling, name)), getattr(ceiling, name)
                changes[name] = check(_value, getattr(requested, one.name), f"{field}.{one.name}", *bounds)
    return replace(ceiling, **changes)


def _value(value: float | Duration, path: str, least: float, most: float) -> float:
    """Return what a request says of a limit, a duration in seconds."""
    if not isinstance(value, int | float):
        milliseconds = requests.duration(value, path)
        if not math.ceil(least * 1000) <= milliseconds <= most * 1000:
            raise InvalidField(path, f"must be from {least:.15g} to {most:.15g} s, not {milliseconds / 1000:.15g}")
        return milliseconds / 1000
    if not least <= value <= most:
        raise InvalidField(path, f"must be from {least:.15g} to {most:.15g}, not {value}")
    return value


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
