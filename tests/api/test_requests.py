"""What requests have in common is read into checked values, or refused with the field named."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from rlm.v1 import session_pb2, types_pb2
from rlm.v1.errors_pb2 import ErrorReason

from rlm_server.api import requests, responses
from rlm_server.api.errors import InvalidField, NotFound
from rlm_server.contexts.context_table import Context
from rlm_server.contexts.contexts import Contexts
from rlm_server.ledger import MAX_BUDGET, UNITS, Limit
from tests.api.offers import routes

MANY = 2 * requests.MAX_TOKEN
PLACE = (1 << 62) - 1
"""The last place of a list that a token may name."""
places = st.integers(0, PLACE)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


def token(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


# ---- ids and texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "a", "é" * 128, "x" * 128])
def test_a_request_id_is_taken_as_it_is_and_none_where_it_is_empty(value: str) -> None:
    assert requests.request_id(value) == (value or None)


def test_a_request_id_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidField, match="may have 128 characters, not 129") as caught:
        requests.request_id("x" * 129, "header.request_id")
    assert caught.value.field == "header.request_id"


@pytest.mark.parametrize("value", ["x" * 10, "é" * 5, "\U0001f600" + "x" * 6])
def test_code_may_have_so_many_bytes_and_no_more(value: str) -> None:
    assert requests.required_bytes("code", value, 10) == value
    with pytest.raises(InvalidField, match="may have 10 bytes of UTF-8, not 11") as caught:
        requests.required_bytes("code", value + "x", 10)
    assert caught.value.field == "code"
    with pytest.raises(InvalidField, match="must not be empty"):
        requests.required_bytes("code", " \n", 10)


@pytest.mark.parametrize(
    ("asked", "read"),
    [(Duration(nanos=1), 1), (Duration(nanos=1_000_000), 1), (Duration(seconds=2), 2_000), (None, None)],
)
def test_a_span_of_time_is_read_within_its_bounds(asked: Duration | None, read: int | None) -> None:
    request = session_pb2.CreateSessionRequest(idle_time=asked)
    assert requests.time_span(request, "idle_time", "idle_time", 2_000) == read


@pytest.mark.parametrize("asked", [Duration(), Duration(seconds=-1), Duration(seconds=2, nanos=1), Duration(nanos=-1)])
def test_a_span_of_time_out_of_bounds_is_refused_by_name(asked: Duration) -> None:
    request = session_pb2.CreateSessionRequest(idle_time=asked)
    with pytest.raises(InvalidField) as caught:
        requests.time_span(request, "idle_time", "session.idle_time", 2_000)
    assert caught.value.field == "session.idle_time"


@pytest.mark.parametrize("value", ["a", " a ", "é" * 10])
def test_a_required_text_is_taken_as_it_is(value: str) -> None:
    assert requests.required("question", value, 10) == value


@pytest.mark.parametrize(
    ("value", "words"), [("", "empty"), (" \t\n\u3000", "empty"), ("x" * 11, "10 characters, not 11")]
)
def test_a_required_text_that_is_blank_or_too_long_is_refused(value: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words) as caught:
        requests.required("question", value, 10)
    assert caught.value.field == "question"


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "size"), [(0, 100), (1, 1), (100, 100), (1_000, 1_000)])
def test_a_page_has_as_many_as_asked_or_the_usual(value: int, size: int) -> None:
    assert requests.page_size(value, 100, 1_000) == size


@pytest.mark.parametrize("value", [1_001, (1 << 31) - 1])
def test_a_page_size_above_the_most_is_lowered(value: int) -> None:
    assert requests.page_size(value, 100, 1_000) == 1_000


@pytest.mark.parametrize("value", [-1, -(1 << 31)])
def test_a_negative_page_size_is_refused(value: int) -> None:
    with pytest.raises(InvalidField, match="must not be negative") as caught:
        requests.page_size(value, 100, 1_000)
    assert caught.value.field == "page_size"


@given(st.text(), st.lists(places, min_size=1, max_size=4))
def test_the_places_of_a_token_come_back(name: str, put: list[int]) -> None:
    assert requests.page_token(responses.page_token(name, *put), name, len(put)) == tuple(put)


@given(st.text(), st.text(max_size=200))
def test_the_key_of_a_token_comes_back(name: str, put: str) -> None:
    assert requests.page_key(responses.page_token(name, put), name) == put


def test_no_token_is_the_first_page() -> None:
    assert requests.page_token("", "contexts", 1) is None
    assert requests.page_key("", "contexts") is None


@given(st.text(), st.text(), places)
def test_a_token_of_another_list_is_refused(name: str, other: str, place: int) -> None:
    made = responses.page_token(name, place)
    if name != other:
        with pytest.raises(InvalidField):
            requests.page_token(made, other, 1)
        with pytest.raises(InvalidField):
            requests.page_key(responses.page_token(name, "key"), other)


WRONG_TOKENS: dict[str, str] = {
    "no base64": "x",
    "padding alone": "====",
    "base64 of no JSON": base64.urlsafe_b64encode(b"contexts").decode(),
    "JSON that is cut": base64.urlsafe_b64encode(b'["contexts", 1').decode(),
    "bytes that are not UTF-8": base64.urlsafe_b64encode(b'["contexts", "\xff"]').decode(),
    "deep JSON": base64.urlsafe_b64encode(b"[" * 1_400).decode(),
    "not ASCII": "é",
    "an object": token({"contexts": 1}),
    "nothing": token(None),
    "no place": token(["contexts"]),
    "a place too many": token(["contexts", 1, 2]),
    "a list in its place": token(["contexts", [1]]),
    "a negative place": token(["contexts", -1]),
    "a place beyond all": token(["contexts", PLACE + 1]),
    "a fraction": token(["contexts", 1.0]),
    "true": token(["contexts", True]),
    "not a number": token(["contexts", float("nan")]),
    "infinity": token(["contexts", float("inf")]),
    "a list without a name": token([None, 1]),
    "another list": token(["documents", 1]),
    "a token that is too long": responses.page_token("contexts", "x" * MANY),
}


@pytest.mark.parametrize("case", WRONG_TOKENS)
def test_a_wrong_token_is_refused(case: str) -> None:
    with pytest.raises(InvalidField, match="not one of this list") as caught:
        requests.page_token(WRONG_TOKENS[case], "contexts", 1)
    assert caught.value.field == "page_token"
    with pytest.raises(InvalidField, match="not one of this list"):
        requests.page_key(WRONG_TOKENS[case], "contexts")


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()) | any_json.map(token))
def test_whatever_is_sent_as_a_token_is_read_or_refused(value: str) -> None:
    for read in (lambda: requests.page_token(value, "contexts", 1), lambda: requests.page_key(value, "contexts")):
        try:
            found = read()
        except InvalidField:
            continue
        assert found is None or isinstance(found, tuple | str)


# ---- times -----------------------------------------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "nanos", "milliseconds"),
    [
        (0, 0, 0),
        (0, 1, 1),
        (0, 1_000_000, 1),
        (0, 1_000_001, 2),
        (1, 999_999_999, 2_000),
        (requests.MAX_SECONDS, 0, requests.MAX_SECONDS * 1000),
        (requests.MAX_SECONDS, 999_999_999, (requests.MAX_SECONDS + 1) * 1000),
    ],
)
def test_a_time_is_rounded_up_to_milliseconds(seconds: int, nanos: int, milliseconds: int) -> None:
    assert requests.time(Timestamp(seconds=seconds, nanos=nanos), "since") == milliseconds


def test_the_last_time_is_the_last_second_of_the_year_9999() -> None:
    assert EPOCH + timedelta(seconds=requests.MAX_SECONDS) == LAST


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (-(1 << 63), 0), (requests.MAX_SECONDS + 1, 0), ((1 << 63) - 1, 0), (0, -1), (0, 1_000_000_000)],
)
def test_a_time_before_1970_or_after_9999_is_refused(seconds: int, nanos: int) -> None:
    with pytest.raises(InvalidField, match="from 1970 to 9999") as caught:
        requests.time(Timestamp(seconds=seconds, nanos=nanos), "filter.since")
    assert caught.value.field == "filter.since"


@given(st.integers(0, requests.MAX_SECONDS * 1000))
def test_a_time_that_is_written_is_read_as_the_same(milliseconds: int) -> None:
    assert requests.time(responses.time(milliseconds), "since") == milliseconds


# ---- budgets ---------------------------------------------------------------------------------------------------------

amounts = st.none() | st.integers(1, MAX_BUDGET)


@given(st.fixed_dictionaries(dict.fromkeys(UNITS, amounts)))
def test_a_budget_comes_back_as_it_is_written(given_amounts: dict[str, int | None]) -> None:
    limit = Limit(**given_amounts)
    if limit.cpu_ms is not None:
        limit = replace(limit, cpu_ms=min(limit.cpu_ms, requests.MAX_DURATION * 1000))
    assert requests.budget(responses.budget(limit)) == limit


def test_an_amount_that_is_left_out_is_not_limited() -> None:
    assert requests.budget(types_pb2.Budget()) == Limit()
    assert len(UNITS) == len(types_pb2.Budget.DESCRIPTOR.fields)


@pytest.mark.parametrize("amount", [0, -1, MAX_BUDGET + 1, (1 << 63) - 1, -(1 << 63)])
@pytest.mark.parametrize("field", ["nano_usd", "token_count", "call_count"])
def test_an_amount_out_of_bounds_is_refused_by_name(field: str, amount: int) -> None:
    asked = types_pb2.Budget()
    setattr(asked, field, amount)
    with pytest.raises(InvalidField, match=f"from 1 to {MAX_BUDGET}") as caught:
        requests.budget(asked)
    assert caught.value.field == f"budget.{field}"


@pytest.mark.parametrize(
    ("seconds", "nanos", "words"),
    [(0, 0, "from 1 to"), (-1, 0, "a duration"), (0, -1, "a duration"), (requests.MAX_DURATION + 1, 0, "a duration")],
)
def test_a_processor_time_out_of_bounds_is_refused_by_name(seconds: int, nanos: int, words: str) -> None:
    with pytest.raises(InvalidField, match=words) as caught:
        requests.budget(types_pb2.Budget(cpu_time=Duration(seconds=seconds, nanos=nanos)))
    assert caught.value.field == "budget.cpu_time"


# ---- what there is on this server ------------------------------------------------------------------------------------


def test_a_model_that_is_offered_is_taken() -> None:
    requests.check_offered(routes("play"), "sub_model", "play")


@pytest.mark.parametrize("model", ["", "Play", "play ", "x" * 200])
def test_a_model_that_is_not_offered_is_refused_with_those_that_are(model: str) -> None:
    with pytest.raises(InvalidField, match=r"the models are: other, play$") as caught:
        requests.check_offered(routes("play", "other"), "sub_model", model)
    assert caught.value.field == "sub_model"
    assert caught.value.reason == ErrorReason.ERROR_REASON_UNKNOWN_MODEL
    assert len(str(caught.value)) < 200


def test_an_image_is_one_there_is_and_the_first_where_none_is_named() -> None:
    assert requests.image("", ("core", "data")) == "core"
    assert requests.image("data", ("core", "data")) == "data"
    with pytest.raises(InvalidField, match="the images are: core, data") as caught:
        requests.image("x" * 200, ("core", "data"))
    assert caught.value.field == "image"
    assert len(str(caught.value)) < 200


class KnownContexts:
    """Contexts of which the tenant "ann" has one."""

    def __init__(self, known: Context) -> None:
        self.known = known

    async def get(self, tenant: str, context_id: str) -> Context | None:
        return self.known if (tenant, context_id) == ("ann", self.known.id) else None


async def test_a_context_is_the_tenants_or_not_found(context: Context) -> None:
    contexts = cast("Contexts", KnownContexts(context))
    assert await requests.context(contexts, "ann", context.id) is context
    assert await requests.context(contexts, "ann", "") is None
    for tenant, context_id in (("bob", context.id), ("ann", "another")):
        with pytest.raises(NotFound) as caught:
            await requests.context(contexts, tenant, context_id)
        assert (caught.value.kind, caught.value.name) == ("context", context_id)


@pytest.mark.parametrize("field", ["model", "filter.model", "image"])
def test_a_name_longer_than_any_is_refused_by_its_field_and_not_looked_up(field: str) -> None:
    requests.check_name(field, "x" * 200)
    with pytest.raises(InvalidField, match="may have 200 characters, not 201") as caught:
        requests.check_name(field, "x" * 201)
    assert caught.value.field == field
