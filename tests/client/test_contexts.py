"""What is stored can be listed, read, searched and deleted."""

from __future__ import annotations

from itertools import islice

import grpc
import pytest
from rlm.v1 import context_pb2
from rlm_client import Client, Document, InvalidArgument, Match, NotFound

from tests.client.fake_contexts import MAX_READ, PAGE, refusal
from tests.client.fake_server import FakeServer

TEXTS = {f"document {number}": f"this is {number}, and that is {number + 1}" for number in range(2 * PAGE + 1)}


@pytest.fixture
def stored(client: Client) -> str:
    return client.upload(TEXTS).context_id


def test_all_contexts_are_listed_the_newest_first(client: Client) -> None:
    made = [client.upload(f"text {number}") for number in range(2 * PAGE + 1)]
    assert list(client.list_contexts()) == made[::-1]


def test_contexts_are_listed_by_label_and_name(client: Client) -> None:
    red = client.upload("x", "one", labels={"team": "red"})
    blue = client.upload("x", "two", labels={"team": "blue"})
    assert list(client.list_contexts(labels={"team": "red"})) == [red]
    assert list(client.list_contexts(name="two")) == [blue]


def test_what_is_given_of_a_context_changes_and_the_rest_stays(client: Client, fake: FakeServer) -> None:
    context_id = client.upload("x", "one", labels={"team": "red"}).context_id
    assert client.update_context(context_id, name="two").labels == {"team": "red"}
    changed = client.update_context(context_id, labels={})
    assert (changed.name, dict(changed.labels)) == ("two", {})
    asked = fake.asked(context_pb2.UpdateContextRequest)
    assert [list(request.update_mask.paths) for request in asked] == [["name"], ["labels"]]
    assert all(request.request_id for request in asked)


def test_a_list_is_asked_for_as_it_is_taken(client: Client, fake: FakeServer, stored: str) -> None:
    assert len(list(islice(client.list_documents(stored), PAGE))) == PAGE
    assert len(fake.asked(context_pb2.ListDocumentsRequest)) == 1


def test_documents_are_listed_in_their_order(client: Client, stored: str) -> None:
    assert list(client.list_documents(stored)) == [
        Document(number=number, name=name, character_count=len(text))
        for number, (name, text) in enumerate(TEXTS.items())
    ]


def test_lists_of_nothing_are_empty(client: Client) -> None:
    assert list(client.list_contexts()) == []


def test_a_range_of_a_document_is_read_as_python_slices_it(client: Client, stored: str) -> None:
    text = TEXTS["document 3"]
    assert client.read_context(stored, 5, 9, 3) == text[5:9]
    assert client.read_context(stored, 5, document=3) == text[5:]
    assert client.read_context(stored, document=3) == text
    assert client.read_context(stored, 5, 1_000_000, 3) == text[5:]
    assert client.read_context(stored, 5, 5, 3) == ""


@pytest.mark.parametrize("size", [MAX_READ - 1, MAX_READ, MAX_READ + 1, 2 * MAX_READ, 3 * MAX_READ + 7])
def test_a_long_range_is_read_in_parts(size: int, client: Client, fake: FakeServer) -> None:
    text = "".join(chr(0x4E00 + number % 5_000) for number in range(size))
    context_id = client.upload(text).context_id
    assert client.read_context(context_id) == text
    assert client.read_context(context_id, 1, size - 1) == text[1:-1]
    assert client.read_context(context_id, 0, size) == text
    assert len(fake.asked(context_pb2.ReadContextRequest)) <= 3 * (size // MAX_READ + 1)


def test_a_range_that_is_none_is_the_servers_to_refuse(client: Client, stored: str) -> None:
    with pytest.raises(InvalidArgument, match="end: at most"):
        client.read_context(stored, 5, 3)


def test_a_search_gives_places_and_whether_there_are_more(client: Client, stored: str) -> None:
    found = client.search_context(stored, "is [0-9]", documents=[2, 5], limit=3)
    assert list(found.matches) == [
        Match(document=2, start=5, end=9, text="is 2"),
        Match(document=2, start=20, end=24, text="is 3"),
        Match(document=5, start=5, end=9, text="is 5"),
    ]
    assert found.next_page_token


def test_a_search_asks_for_all_documents_and_a_hundred_matches_unless_told(
    client: Client, fake: FakeServer, stored: str
) -> None:
    assert len(client.search_context(stored, "is [0-9]").matches) == 2 * len(TEXTS)
    (asked,) = fake.asked(context_pb2.SearchContextRequest)
    assert (list(asked.documents), asked.page_size) == ([], 100)


def test_what_is_deleted_is_gone(client: Client, stored: str) -> None:
    client.delete_context(stored)
    with pytest.raises(NotFound, match="there is no context"):
        client.get_context(stored)


def test_what_finds_the_server_unavailable_is_repeated(client: Client, fake: FakeServer, stored: str) -> None:
    gone = refusal(grpc.StatusCode.UNAVAILABLE, "gone")
    for call in ("ListContexts", "ListDocuments", "ReadContext", "SearchContext", "DeleteContext", "GetSession"):
        fake.refusals[call].append(gone)
    assert len(list(client.list_contexts())) == 1
    assert len(list(client.list_documents(stored))) == len(TEXTS)
    assert client.read_context(stored, 0, 4) == "this"
    assert client.search_context(stored, "that").matches
    assert client.get_session("session-1").session_id == "session-1"
    client.delete_context(stored)


def test_a_session_says_how_much_of_its_context_it_has_looked_at(client: Client) -> None:
    assert client.get_session("session-1").coverage.fraction == 0.5
