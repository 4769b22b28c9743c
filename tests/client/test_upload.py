"""A text arrives whole, in order, and hashed."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from rlm.v1 import context_pb2
from rlm_client import Client, ContextKind, SourceRefused
from rlm_client.source import FileOptions, material
from rlm_client.upload import CHUNK_BYTES, measure

from tests.client.fake_server import FakeServer

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
        name="log.txt",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        request_id=header.header.request_id,
    )
    assert len(header.header.request_id) == 36
    assert [part.chunk.offset for part in chunks] == list(range(0, len(data), CHUNK_BYTES))
    assert max(len(part.chunk.data) for part in chunks) == CHUNK_BYTES == 1024 * 1024
    assert b"".join(part.chunk.data for part in chunks) == data
    assert context.character_count == len(TEXT)
    assert context.kind == ContextKind.CONTEXT_KIND_TEXT


@pytest.mark.parametrize("source", ["päper", "päper".encode()])
def test_a_str_and_bytes_are_the_text_itself(source: str | bytes, client: Client) -> None:
    context = client.upload(source, name="mine")
    assert (context.name, context.size_bytes, context.character_count) == ("mine", 6, 5)


def test_a_str_that_names_a_file_is_not_taken_for_a_text(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("the text that was meant")
    with pytest.raises(ValueError, match=r"names a file: pass pathlib\.Path"):
        client.upload(str(path))
    assert fake.metadata == []


def test_an_empty_text_is_a_header_alone(client: Client, fake: FakeServer) -> None:
    assert client.upload("").size_bytes == 0
    assert len(fake.asked(context_pb2.UploadContextRequest)) == 1


def test_what_is_not_utf8_is_refused_before_anything_is_sent(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(SourceRefused, match=r"latin\.txt is not UTF-8 \(invalid continuation byte at byte 2\)"):
        client.upload(path)
    assert fake.metadata == []


def test_a_character_may_lie_across_two_chunks(client: Client) -> None:
    text = "x" * (CHUNK_BYTES - 1) + "é"
    assert client.upload(text).character_count == CHUNK_BYTES


@pytest.mark.parametrize("end", [b"", b"x"], ids=["at the end", "in the middle"])
def test_the_byte_that_is_not_utf8_is_named_also_where_pieces_meet(end: bytes, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes(b"x" * (CHUNK_BYTES - 1) + "é".encode()[:1] + end)
    with pytest.raises(SourceRefused, match=f"at byte {CHUNK_BYTES - 1:,}"):
        client.upload(path)


def test_a_str_that_is_no_unicode_is_refused(client: Client, fake: FakeServer) -> None:
    with pytest.raises(SourceRefused, match="the text has half a surrogate pair at character 2"):
        client.upload("ab\ud800")
    assert fake.metadata == []


def test_a_pipe_is_refused_because_a_source_is_read_twice(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceRefused, match=r"pipe is not a regular file, and an upload reads it twice"):
        client.upload(tmp_path / "pipe")


@pytest.mark.parametrize("source", [7, None, object()])
def test_what_is_no_source_is_refused(source: Any, client: Client) -> None:
    with pytest.raises(TypeError, match="can be uploaded, not"):
        client.upload(source)


def test_a_long_file_name_makes_a_name_the_server_takes(client: Client, tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 250}.txt"
    path.write_text("text")
    assert client.upload(path).name == "n" * 200


def test_a_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * (32 * CHUNK_BYTES))
    tracemalloc.start()
    try:
        messages = sum(1 for _ in measure(material(path, None, FileOptions())).messages())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert messages == 33
    assert peak < 12 * CHUNK_BYTES
