"""However the bytes of an upload come, and however often it breaks off, its documents are what was sent."""

from __future__ import annotations

import hashlib
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_server.contexts import spool as spools
from rlm_server.contexts.local_files import LocalContextFiles
from rlm_server.contexts.spool import CHUNK, Header, Spool, UploadRefused
from sandbox.corpora.corpus import Kind
from sandbox.corpora.text import encode

CHARACTERS = st.one_of(
    st.characters(max_codepoint=0x7F),
    st.characters(max_codepoint=0xFF),
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("\x00\ufeff\r\n\x7f\x80\xbf\xc0\xff\u0100\u07ff\u0800\uffff\U00010000\U0010ffff"),
)
TEXTS = st.text(CHARACTERS, max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


def header_of(data: bytes, documents: int) -> Header:
    return Header("tenant", None, "name", len(data), hashlib.sha256(data).hexdigest(), documents)


@settings(max_examples=100)
@given(data=st.data(), documents=st.lists(st.tuples(NAMES, TEXTS), min_size=1, max_size=12))
def test_documents_arrive_whatever_the_chunks_and_the_breaks(
    data: st.DataObject, documents: Sequence[tuple[str, str]]
) -> None:
    encoded = [text.encode() for _, text in documents]
    whole = b"".join(encoded)
    header = header_of(whole, len(documents))
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool.open(Path(folder) / "upload", header)
        announced = 0
        while spool.received < len(whole) or announced < len(documents):
            if data.draw(st.booleans()):
                spool = Spool.open(Path(folder) / "upload", header)
                assert Spool.measure(Path(folder) / "upload") == (spool.received, spool.announced)
            room = sum(map(len, encoded[:announced])) - spool.received
            more = data.draw(st.integers(0 if room else 1, max(1, len(documents) - announced)))
            next_ones = documents[announced : announced + more]
            spool.announce(announced, [(name, len(text.encode())) for name, text in next_ones])
            announced += len(next_ones)
            room = sum(map(len, encoded[:announced])) - spool.received
            size = data.draw(st.integers(min(1, room), room))
            spool.add(spool.received, whole[spool.received : spool.received + size])
        spool.check_whole()
        assert list(spool.characters) == [len(text) for _, text in documents]
        assert [spool.form(number) for number in range(len(documents))] == [encode(text)[0] for _, text in documents]
        assert list(spool.names()) == [name for name, _ in documents]
        local_files = LocalContextFiles(Path(folder) / "contexts")
        files = local_files.write("ctx", spool, lambda: False)
        corpus = local_files.corpus("ctx", files)
        assert corpus.kind is Kind.DOCUMENTS
        assert [text.read(0, text.characters) for text in corpus] == [text for _, text in documents]
        assert corpus.names.read(0, corpus.names.characters) == "\n".join(name for name, _ in documents)
        for file, written in (("texts", files.texts), ("index", files.index)):
            assert hashlib.sha256(local_files.path("ctx", file).read_bytes()).hexdigest() == written.sha256
            assert local_files.path("ctx", file).stat().st_mode & 0o777 == 0o400


@settings(max_examples=200)
@given(data=st.data(), documents=st.lists(st.binary(max_size=8), min_size=1, max_size=6))
def test_bytes_are_taken_where_python_takes_them_document_by_document(
    data: st.DataObject, documents: list[bytes]
) -> None:
    whole, start, wrong = b"".join(documents), 0, None
    for document in documents:
        try:
            document.decode()
        except UnicodeDecodeError as error:
            wrong = start + error.start
            break
        start += len(document)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool.open(Path(folder) / "upload", header_of(whole, len(documents)))
        spool.announce(0, [("", len(document)) for document in documents])
        try:
            while spool.received < len(whole):
                size = data.draw(st.integers(1, len(whole) - spool.received))
                spool.add(spool.received, whole[spool.received : spool.received + size])
        except UploadRefused as error:
            assert wrong is not None
            assert f"at byte {wrong}, " in str(error)  # noqa: PT017
        else:
            assert wrong is None


@pytest.mark.parametrize(
    "unit", ["plain text, ", "größer, ", "東京, ", "🎉, "], ids=["ASCII", "Latin-1", "UCS-2", "UCS-4"]
)
def test_a_large_text_is_never_whole_in_memory(tmp_path: Path, unit: str) -> None:
    piece = (unit * CHUNK).encode()[: CHUNK // len(unit.encode()) * len(unit.encode())]
    digest = hashlib.sha256()
    for _ in range(64):
        digest.update(piece)
    header = Header("tenant", None, "name", 64 * len(piece), digest.hexdigest(), 0)
    tracemalloc.start()
    try:
        spool = Spool.open(tmp_path / "upload", header)
        for _ in range(64):
            spool.add(spool.received, piece)
        spool.check_whole()
        local_files = LocalContextFiles(tmp_path / "contexts")
        files = local_files.write("ctx", spool, lambda: False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * CHUNK
    (text,) = local_files.corpus("ctx", files)
    assert text.characters == 64 * len(piece.decode())
    assert text.read(text.characters - len(unit), text.characters) == unit


def test_small_documents_share_their_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []

    def write(path: Path, data: bytes, at: int) -> None:
        writes.append(len(data))
        real(path, data, at)

    real = spools._write
    monkeypatch.setattr(spools, "_write", write)
    documents = [(f"{number}.txt", 5) for number in range(100_000)]
    data = b"small" * len(documents)
    spool = Spool.open(tmp_path / "upload", header_of(data, len(documents)))
    for first in range(0, len(documents), 10_000):
        spool.announce(first, documents[first : first + 10_000])
    spool.add(0, data)
    spool.check_whole()
    assert len(writes) == 11
    assert list(spool.characters) == [5] * len(documents)


def test_a_text_of_ascii_is_not_written_again(tmp_path: Path) -> None:
    data = b"plain " * 1000
    spool = Spool.open(tmp_path / "upload", header_of(data, 0))
    spool.add(0, data)
    spool.check_whole()
    local_files = LocalContextFiles(tmp_path / "contexts")
    local_files.write("ctx", spool, lambda: False)
    assert local_files.path("ctx", "texts").samefile(spool.texts)


def test_an_upload_that_was_nearly_finished_when_its_process_died_is_finished_by_the_next(tmp_path: Path) -> None:
    data = b"plain " * 1000
    header = header_of(data, 0)
    spool = Spool.open(tmp_path / "upload", header)
    spool.add(0, data)
    spool.check_whole()
    local_files = LocalContextFiles(tmp_path / "contexts")
    local_files.write("ctx", spool, lambda: False)
    local_files.clear("ctx")
    again = Spool.open(tmp_path / "upload", header)
    assert again.received == len(data)
    again.check_whole()
    (text,) = local_files.corpus("ctx", local_files.write("ctx", again, lambda: False))
    assert text.read(0, len(data)) == data.decode()
