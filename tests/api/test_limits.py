"""A request's limits are those that are declared, and it may lower them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from rlm.v1 import run_pb2, types_pb2
from rlm_client.durations import milliseconds, seconds

from rlm_server.api.errors import InvalidField
from rlm_server.api.limits import declared_name, lowered
from rlm_server.repl.limits import RunLimits
from sandbox.limits import Limits, declared

MESSAGES = [(run_pb2.RunLimits, RunLimits()), (types_pb2.SandboxLimits, Limits())]


def refusal(asked: Message, ceiling: Any) -> tuple[str, str]:
    """The field that is refused, and why."""
    with pytest.raises(InvalidField) as caught:
        lowered("limits", asked, ceiling)
    return caught.value.field, str(caught.value)


@pytest.mark.parametrize(("message", "limits"), MESSAGES)
def test_every_limit_that_the_protocol_names_is_declared(message: type[Message], limits: Any) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is types_pb2.SandboxLimits.DESCRIPTOR:
            continue
        assert declared_name(field.name, declared(limits)) in declared(limits)
        asked = message()
        if field.message_type is None:
            setattr(asked, field.name, -1)
        else:
            getattr(asked, field.name).seconds = -1
        assert refusal(asked, limits)[0] == f"limits.{field.name}"


@pytest.mark.parametrize(("message", "limits"), MESSAGES)
def test_a_request_that_says_nothing_has_the_ceiling(message: type[Message], limits: Any) -> None:
    assert lowered("limits", message(), limits) == limits


def test_a_limit_is_lowered_and_0_is_told_from_nothing() -> None:
    asked = run_pb2.RunLimits(max_turn_count=2, max_depth=0)
    assert lowered("limits", asked, RunLimits(max_turns=3)) == RunLimits(max_turns=2, max_depth=0)


def test_a_limit_beyond_the_ceiling_or_below_the_least_is_refused_by_its_own_name() -> None:
    ceiling = RunLimits(max_turns=3, max_depth=2, wall_seconds=0.5)
    for asked, field, words in (
        (run_pb2.RunLimits(max_turn_count=4), "limits.max_turn_count", "must be from 1 to 3, not 4"),
        (run_pb2.RunLimits(max_depth=3), "limits.max_depth", "must be from 0 to 2, not 3"),
        (
            run_pb2.RunLimits(wall_time=seconds(1)),
            "limits.wall_time",
            "must be from 0.001 to 0.5 s, not 1",
        ),
    ):
        assert refusal(asked, ceiling) == (field, words)
    least = "must be from 67108864 to 536870912, not 67108863"
    assert refusal(types_pb2.SandboxLimits(memory_bytes=(64 << 20) - 1), Limits()) == ("limits.memory_bytes", least)
    long = types_pb2.SandboxLimits(turn_time=milliseconds(1_501))
    words = "must be from 0.001 to 1.5 s, not 1.501"
    assert refusal(long, Limits(turn_seconds=1.5)) == ("limits.turn_time", words)


def test_durations_lower_a_limit_in_seconds() -> None:
    asked = types_pb2.SandboxLimits(turn_time=milliseconds(1_500), memory_bytes=64 << 20)
    assert lowered("limits", asked, Limits()) == Limits(turn_seconds=1.5, memory_bytes=64 << 20)
