"""Streams of server-sent events, however they are cut into parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_server.broker.providers.event_stream import EventStream

STREAM = (
    'event: one\r\ndata: {"é": 1}\r\n\r\n: a comment\n\ndata:a\ndata:  b\nid: 7\n\n'
    "event: end\rdata: [DONE]\r\rdata: cut"
)
EVENTS = [("one", '{"é": 1}'), ("", "a\n b"), ("end", "[DONE]")]


def read(*parts: bytes) -> list[tuple[str, str]]:
    stream = EventStream()
    return [event for part in parts for event in stream.read(part)]


@given(st.sets(st.integers(1, len(STREAM.encode()) - 1)))
def test_the_same_events_come_of_every_way_to_cut_a_stream_into_parts(cuts: set[int]) -> None:
    whole = STREAM.encode()
    ends = [*sorted(cuts), len(whole)]
    assert read(*(whole[start:end] for start, end in zip([0, *ends], ends, strict=False))) == EVENTS


def test_an_event_that_the_end_cuts_off_is_none() -> None:
    assert read(b"data: 1\n\ndata: 2\n") == [("", "1")]


def test_a_line_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read(b"data: \xff\n\n")


def test_what_is_neither_a_name_nor_data_makes_no_event() -> None:
    assert read(b": ping\n\nretry: 1\n\nid: 1\n\n\n") == []
