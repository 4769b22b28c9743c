"""Many documents become one context, in their order and with their names."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rlm.v1 import context_pb2
from rlm_client import Client, ContextKind, SourceRefused
from rlm_client.source import FileOptions, material
from rlm_client.upload import CHUNK_BYTES, measure

from tests.client.fake_server import FakeServer

HALF = CHUNK_BYTES // 2


def write(folder: Path, **files: str | bytes) -> Path:
    """Write files; `__` in a name stands for a `/`, and `_` for the dot of its suffix."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---- in memory -------------------------------------------------------------------------------------------------------


def test_a_mapping_keeps_names_and_order(client: Client, fake: FakeServer) -> None:
    texts: dict[str, str | bytes] = {"zwei": "päper", "eins": b"stone", "leer": ""}
    context = client.upload(texts, name="games")
    assert list(fake.documents.items()) == [("zwei", "päper"), ("eins", "stone"), ("leer", "")]
    assert (context.kind, context.document_count, context.name) == (ContextKind.CONTEXT_KIND_DOCUMENTS, 3, "games")
    assert (context.size_bytes, context.character_count) == (11, 10)


def test_pairs_may_repeat_a_name(client: Client, fake: FakeServer) -> None:
    client.upload([("same", "one"), ("same", "two")])
    (stored,) = fake.stored.values()
    assert stored.documents == [("same", "one"), ("same", "two")]


def test_an_iterator_is_read_once(client: Client, fake: FakeServer) -> None:
    client.upload((str(number), "x" * number) for number in range(3))
    assert fake.documents == {"0": "", "1": "x", "2": "xx"}


def test_what_can_be_iterated_again_is_read_twice_and_never_whole_in_memory() -> None:
    class Corpus:
        readings = 0

        def __iter__(self) -> Iterator[tuple[str, str]]:
            self.readings += 1
            return ((str(number), str(number % 10) * CHUNK_BYTES) for number in range(32))

    corpus = Corpus()
    tracemalloc.start()
    try:
        upload = measure(material(corpus, None, FileOptions()))
        sent = sum(len(message.chunk.data) for message in upload.messages())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == upload.header.size_bytes == 32 * CHUNK_BYTES
    assert peak < 12 * CHUNK_BYTES
    assert corpus.readings == 2


def test_a_path_from_what_is_iterated_is_named_by_its_file_name(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    class Corpus:
        def __iter__(self) -> Iterator[Path]:
            return iter((tmp_path / "x" / "a.txt", tmp_path / "b.txt"))

    write(tmp_path, x__a_txt="a", b_txt="b")
    client.upload(Corpus())
    assert fake.documents == {"a.txt": "a", "b.txt": "b"}


@pytest.mark.parametrize(
    "data",
    [{"a": {"é": 1}, "b": "x"}, [{"role": "user", "content": "hi"}], [1, "a"], {"rows": [1.5, None]}, [[1], [2]]],
)
def test_a_dict_or_list_of_data_is_one_text_of_json(data: Any, client: Client, fake: FakeServer) -> None:
    context = client.upload(data)
    assert context.kind == context_pb2.CONTEXT_KIND_TEXT
    assert json.loads(client.read_context(context.context_id)) == data


@pytest.mark.parametrize("nothing", [{}, [], iter(())])
def test_no_documents_are_no_context(nothing: Any, client: Client, fake: FakeServer) -> None:
    with pytest.raises(SourceRefused, match="there are no documents"):
        client.upload(nothing)
    assert fake.metadata == []


@pytest.mark.parametrize(
    ("items", "told"),
    [
        (["a.txt"], r"item 0 is a str: pass pathlib.Path\('a.txt'\) for a file, or a \(name, text\) pair"),
        ([("name", "text"), 7], r"item 1 must be a path or a \(name, text\) pair, not int"),
        ([("name", "text", "more")], r"item 0 must be a path or a \(name, text\) pair, not tuple"),
        ([(7, "text")], r"item 0 must be a path or a \(name, text\) pair, not tuple"),
        ({"name": None}, "document 'name': a text is a str or bytes, not NoneType"),
        ({7: "text"}, r"item 0 must be a path or a \(name, text\) pair, not tuple"),
    ],
)
def test_an_item_that_is_no_document_is_named(items: Any, told: str, client: Client) -> None:
    with pytest.raises(TypeError, match=told):
        client.upload(items)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("n" * 501, "text", r"may have 500 characters; 'n{40}'… has more"),
        ("two\nlines", "text", r"one line without control characters, unlike 'two\\nlines'"),
        ("two\u2028lines", "text", "one line without control characters"),
        ("\ud800", "text", "name is not UTF-8"),
        ("name", "\ud800", "document 'name' has half a surrogate pair at character 0"),
        ("name", b"ab\xff", r"document 'name' is not UTF-8 \(invalid start byte at byte 2\)"),
    ],
)
def test_what_the_server_would_refuse_is_refused_before_anything_is_sent(
    name: str, text: str | bytes, told: str, client: Client, fake: FakeServer
) -> None:
    with pytest.raises(SourceRefused, match=told):
        client.upload([("first", "fine"), (name, text)])
    assert fake.metadata == []


@pytest.mark.parametrize("name", ["n" * 500, "with space", "päper/日本語.txt", "\U0001f3b2\u200d", "", "../up"])
def test_any_line_is_a_name(name: str, client: Client, fake: FakeServer) -> None:
    client.upload({name: "text"})
    assert fake.documents == {name: "text"}


# ---- how they travel -------------------------------------------------------------------------------------------------


def test_chunks_run_through_documents(client: Client, fake: FakeServer) -> None:
    texts = {"a": "a" * HALF, "b": "b" * CHUNK_BYTES, "c": "é" * HALF, "d": "d"}
    client.upload(texts)
    assert fake.documents == texts
    sizes = [len(part.chunk.data) for part in fake.asked(context_pb2.UploadContextRequest) if part.chunk.data]
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, HALF + 1]


def test_a_hundred_thousand_small_documents_take_few_messages(client: Client, fake: FakeServer) -> None:
    texts = {f"folder/document-{number:06}": f"text {number}" for number in range(100_000)}
    assert client.upload(texts).document_count == 100_000
    assert fake.documents == texts
    assert len(fake.asked(context_pb2.UploadContextRequest)) < 20


def test_long_names_are_announced_in_messages_under_a_mebibyte(client: Client, fake: FakeServer) -> None:
    texts = {f"{number:04}{'名' * 496}": "" for number in range(1_000)} | {"end": "text"}
    client.upload(texts)
    assert list(fake.documents) == list(texts)
    assert fake.complaints == []


def test_empty_documents_may_stand_anywhere(client: Client, fake: FakeServer) -> None:
    texts = {"first": "", "a": "a" * CHUNK_BYTES, "middle": "", "b": "b", "last": ""}
    client.upload(texts)
    assert list(fake.documents.items()) == list(texts.items())


# ---- directories and lists of files ----------------------------------------------------------------------------------


def test_a_directory_is_its_files_sorted_by_their_paths(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, b_txt="b", a__z_txt="az", a__b__c_txt="abc", a_txt="a", A_txt="A")
    context = client.upload(tmp_path)
    assert list(fake.documents.items()) == [
        ("A.txt", "A"),
        ("a/b/c.txt", "abc"),
        ("a/z.txt", "az"),
        ("a.txt", "a"),
        ("b.txt", "b"),
    ]
    assert context.name == tmp_path.name


def test_hidden_files_links_and_pipes_of_a_directory_are_left_out(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    write(folder, seen_txt="seen", sub__seen_txt="seen too")
    write(folder / ".git", config="hidden")
    (folder / ".hidden").write_text("hidden")
    write(tmp_path, secret_txt="secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    client.upload(folder)
    assert fake.documents == {"seen.txt": "seen", "sub/seen.txt": "seen too"}


def test_a_file_in_a_directory_is_one_document_whatever_its_suffix(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    write(tmp_path, lines_jsonl='"one"\n"two"\n')
    client.upload(tmp_path)
    assert fake.documents == {"lines.jsonl": '"one"\n"two"\n'}


def test_files_are_named_by_their_places_below_what_they_have_in_common(
    client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    write(tmp_path, y2023__q1_txt="1", y2023__q2_txt="2", y2024__q1_txt="3")
    write_lines(tmp_path / "notes.jsonl", {"id": "n1", "text": "4"})
    context = client.upload([tmp_path / "y2024" / "q1.txt", tmp_path / "y2023", tmp_path / "notes.jsonl"])
    assert list(fake.documents.items()) == [
        ("y2024/q1.txt", "3"),
        ("y2023/q1.txt", "1"),
        ("y2023/q2.txt", "2"),
        ("notes.jsonl/n1", "4"),
    ]
    assert context.name == "q1.txt and 2 more"


def test_files_of_one_directory_are_named_by_their_file_names(
    client: Client, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, sub__a_txt="a", sub__b_txt="b")
    monkeypatch.chdir(tmp_path)
    client.upload([Path("sub/a.txt"), Path("sub/../sub/b.txt")])
    assert fake.documents == {"a.txt": "a", "b.txt": "b"}


def test_a_list_of_one_file_is_one_document(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, a_txt="a")
    assert client.upload([tmp_path / "a.txt"]).kind == ContextKind.CONTEXT_KIND_DOCUMENTS
    assert fake.documents == {"a.txt": "a"}


def test_paths_and_texts_may_be_mixed(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, a_txt="a")
    client.upload([("note", "mine"), tmp_path / "a.txt"])
    assert list(fake.documents.items()) == [("note", "mine"), ("a.txt", "a")]


def test_a_file_that_is_not_there_is_named(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        client.upload([tmp_path / "missing.txt"])
    assert fake.metadata == []


def test_a_file_that_is_not_utf8_is_an_error_that_names_it(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, a_txt="a", sub__image_png=b"\x89PNG")
    with pytest.raises(
        SourceRefused, match=r"sub/image\.png is not UTF-8 \(invalid start byte at byte 0\).*skip_binary"
    ):
        client.upload(tmp_path)
    assert fake.metadata == []


def test_files_that_are_not_utf8_can_be_left_out(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    late = b"x" * CHUNK_BYTES + b"\xff"
    write(tmp_path, a_txt="a", b_png=b"\x89PNG", c_txt="c", d_bin=late, e_txt="e" * CHUNK_BYTES)
    skipped: list[str] = []
    client.upload(tmp_path, skip_binary=True, on_skip=skipped.append)
    assert fake.documents == {"a.txt": "a", "c.txt": "c", "e.txt": "e" * CHUNK_BYTES}
    assert skipped == [str(tmp_path / "b.png"), str(tmp_path / "d.bin")]


def test_a_directory_without_text_is_an_error_that_says_what_was_left_out(client: Client, tmp_path: Path) -> None:
    write(tmp_path, a_png=b"\x89PNG")
    with pytest.raises(SourceRefused, match=r"there are no documents in .* \(1 that are not UTF-8 were left out\)"):
        client.upload(tmp_path, skip_binary=True)


def test_a_single_text_is_never_left_out(client: Client, tmp_path: Path) -> None:
    write(tmp_path, a_txt=b"\xff")
    with pytest.raises(SourceRefused, match=r"a\.txt is not UTF-8 .*convert it first"):
        client.upload(tmp_path / "a.txt", skip_binary=True)


def test_a_file_whose_name_is_no_unicode_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"latin-\xe9.txt")).write_text("text")
    with pytest.raises(SourceRefused, match="name is not UTF-8"):
        client.upload(tmp_path)


# ---- .jsonl ----------------------------------------------------------------------------------------------------------


def test_every_line_of_a_jsonl_file_is_a_document(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "corpus.jsonl",
        "a string",
        {"text": "an object"},
        {"text": "with a name", "name": "n1", "id": 9},
        {"text": "with a number", "id": 17},
        {"text": "with a name that is none", "name": ["x"], "id": ""},
    )
    context = client.upload(path)
    assert list(fake.documents.items()) == [
        ("1", "a string"),
        ("2", "an object"),
        ("n1", "with a name"),
        ("17", "with a number"),
        ("5", "with a name that is none"),
    ]
    assert context.name == "corpus.jsonl"


def test_the_fields_of_a_jsonl_file_can_be_chosen(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", {"body": "one", "url": "u1"}, {"body": "two", "url": "u2", "name": "no"})
    client.upload(path, text_field="body", name_field="url")
    assert fake.documents == {"u1": "one", "u2": "two"}


def test_empty_lines_and_a_byte_order_mark_are_no_documents(client: Client, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf"one"\r\n\r\n  \n"three"')
    client.upload(path)
    assert fake.documents == {"1": "one", "4": "three"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON: "),
        ("NaN", "must be a JSON string or an object, not a number"),
        ("[1]", "must be a JSON string or an object, not an array"),
        ("null", "not null"),
        ('{"body": "x", "id": 1}', r"no field 'text' \(its fields: 'body', 'id'\); say which one is the text"),
        ("{}", r"no field 'text' \(its fields: none\)"),
        ('{"text": 1}', "the field 'text' must be a string, not a number"),
        ('"\\ud800"', "has half a surrogate pair at character 0"),
        ('{"text": "x", "name": "two\\nlines"}', "name must be one line"),
        ('{"text": "x", "name": "%s"}' % ("n" * 501), "may have 500 characters"),
        ("[" * 100_000, "JSON nested too deep"),
        ("1" * 10_000, "not JSON: Exceeds the limit"),
        (b'"\xff"', "not UTF-8 .* at byte 1 of the line"),
    ],
)
def test_a_line_that_is_no_document_is_named(
    line: str | bytes, told: str, client: Client, fake: FakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'"fine"\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(SourceRefused, match=rf"corpus\.jsonl, line 2:? .*{told}"):
        client.upload(path)
    assert fake.metadata == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"text": "x"}, "no field 'key' to name the document by"),
        ({"text": "x", "key": None}, "must be a string or a whole number, not null"),
        ({"text": "x", "key": 1.5}, "not a number"),
        ({"text": "x", "key": True}, "not a boolean"),
        ({"text": "x", "key": ""}, "not an empty string"),
    ],
)
def test_a_name_that_was_asked_for_must_be_there(value: object, told: str, client: Client, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", value)
    with pytest.raises(SourceRefused, match=f"line 1: .*{told}"):
        client.upload(path, name_field="key")


def test_a_line_of_any_length_is_refused_without_reading_all_of_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_client.jsonl.MAX_LINE_BYTES", 1_000)
    path = write_lines(tmp_path / "c.jsonl", "x" * 998, "x" * 998)
    with pytest.raises(SourceRefused, match="line 1: a line may have 1,000 bytes"):
        client.upload(path)
    client.upload(write_lines(path, "x" * 997))
