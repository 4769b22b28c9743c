"""A text arrives whole, in order, and hashed."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import grpc
import pytest
from rlm.v1 import context_pb2
from rlm_client import Client
from rlm_client.upload import CHUNK_BYTES, measure

from tests.client.fake_server import FakeServer, refusal

TEXT = "héllo wörld " * 300_000


def test_a_file_is_sent_as_a_header_and_chunks_with_their_offsets(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    data = TEXT.encode()
    path = tmp_path / "log.txt"
    path.write_bytes(data)
    context = client.upload(path)
    header, *chunks = fake.asked(context_pb2.UploadContextRequest)
    assert header.header == context_pb2.UploadHeader(
        name="log.txt", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    assert [part.chunk.offset for part in chunks] == list(range(0, len(data), CHUNK_BYTES))
    assert max(len(part.chunk.data) for part in chunks) == CHUNK_BYTES == 1024 * 1024
    assert b"".join(part.chunk.data for part in chunks) == data
    assert context.characters == len(TEXT)


@pytest.mark.parametrize("source", ["päper", "päper".encode()])
def test_a_str_and_bytes_are_the_text_itself(source: str | bytes, client: Client) -> None:
    context = client.upload(source, name="mine")
    assert (context.name, context.size_bytes, context.characters) == ("mine", 6, 5)


def test_a_str_that_names_a_file_is_not_taken_for_a_text(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("the text that was meant")
    with pytest.raises(ValueError, match=r"names a file: pass pathlib\.Path"):
        client.upload(str(path))
    assert fake.metadata == []


def test_an_empty_text_is_a_header_alone(client: Client, fake: FakeServer) -> None:
    assert client.upload("").size_bytes == 0
    assert len(fake.asked(context_pb2.UploadContextRequest)) == 1


def test_progress_rises_to_the_whole_size(client: Client) -> None:
    seen: list[tuple[int, int]] = []
    client.upload(TEXT, progress=lambda sent, size: seen.append((sent, size)))
    size = len(TEXT.encode())
    assert seen[0] == (CHUNK_BYTES, size)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_a_broken_upload_starts_over(client: Client, fake: FakeServer) -> None:
    fake.refusals["UploadContext"].append(refusal(grpc.StatusCode.UNAVAILABLE, "gone"))
    assert client.upload(TEXT).sha256 == hashlib.sha256(TEXT.encode()).hexdigest()


def test_what_is_not_utf8_is_refused_before_anything_is_sent(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 .* near byte 2"):
        client.upload(path)
    assert fake.metadata == []


def test_a_character_may_lie_across_two_chunks(client: Client) -> None:
    text = "x" * (CHUNK_BYTES - 1) + "é"
    assert client.upload(text).characters == CHUNK_BYTES


def test_a_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * (32 * CHUNK_BYTES))
    tracemalloc.start()
    try:
        parts = sum(1 for _ in measure(path).parts())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parts == 33
    assert peak < 12 * CHUNK_BYTES
