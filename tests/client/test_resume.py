"""An upload that breaks goes on from what the server has, and is never told to be further than that."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from rlm.v1 import context_pb2
from rlm_client import (
    AlreadyExists,
    Client,
    PermissionDenied,
    ServerFault,
    SourceChanged,
    Unavailable,
)
from rlm_client.source import FileOptions, Source, material
from rlm_client.upload import CHUNK_BYTES, Message, Upload, measure

from tests.client.conftest import AT_ONCE
from tests.client.fake_contexts import Break, refusal
from tests.client.fake_server import FakeServer

TEXT = "héllo wörld " * 300_000
SIZE = len(TEXT.encode())
TEXTS = {f"{number:03}": chr(ord("a") + number % 26) * (number * 1_111) for number in range(100)}

Sources = dict[str, Source]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Give the same documents from everywhere."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in TEXTS.items()))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in TEXTS.items():
            archive.writestr(name, text)
    return {"folder": folder, "lines": lines, "archive": tmp_path / "archive.zip", "memory": TEXTS}


def test_a_broken_upload_goes_on_from_what_the_server_has(client: Client, fake: FakeServer) -> None:
    fake.breaks.extend([Break(after_bytes=2 * CHUNK_BYTES), Break(after_bytes=CHUNK_BYTES)])
    context = client.upload(TEXT)
    assert context.sha256 == sha256(TEXT.encode()).hexdigest()
    assert fake.streams == [(0, 0), (2 * CHUNK_BYTES, 0), (3 * CHUNK_BYTES, 0)]
    assert fake.text == TEXT


@pytest.mark.parametrize("kind", ["folder", "lines", "archive", "memory"])
def test_documents_go_on_in_the_middle_of_one(kind: str, sources: Sources, client: Client, fake: FakeServer) -> None:
    fake.breaks.extend(Break(after_bytes=CHUNK_BYTES) for _ in range(4))
    client.upload(sources[kind])
    assert fake.documents == TEXTS
    assert [received for received, _ in fake.streams] == [number * CHUNK_BYTES for number in range(5)]
    assert fake.complaints == []


@pytest.mark.parametrize("received_documents", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("received_bytes", [0, 1, 2, 3, 4, 5])
def test_an_upload_goes_on_from_anywhere(received_bytes: int, received_documents: int) -> None:
    texts = {"a": "ab", "empty": "", "b": "c", "c": "de", "end": ""}
    upload = measure(material(texts, None, FileOptions()))
    bytes_announced = [0, 2, 2, 3, 5, 5][received_documents]
    if received_bytes > bytes_announced:
        return  # no server has bytes of a document that it does not know
    header, *messages = upload.messages(received_bytes, received_documents)
    assert header.header == upload.header
    assert announced(messages) == list(zip(texts, [2, 0, 1, 2, 0], strict=True))[received_documents:]
    assert b"".join(message.chunk.data for message in messages) == b"abcde"[received_bytes:]


def announced(messages: list[Message]) -> list[tuple[str, int]]:
    return [(one.name, one.size_bytes) for message in messages for one in message.documents.documents]


def test_every_stream_begins_with_the_same_header(client: Client, fake: FakeServer) -> None:
    fake.breaks.extend([Break(after_bytes=CHUNK_BYTES), Break(after_bytes=CHUNK_BYTES, forgets=True)])
    client.upload(TEXT, "mine")
    sent = [one.header for one in fake.asked(context_pb2.UploadContextRequest) if one.WhichOneof("part") == "header"]
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert sent[0].name == "mine"


def test_an_upload_that_was_forgotten_starts_over(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_bytes=2 * CHUNK_BYTES, forgets=True))
    client.upload(TEXT)
    assert fake.streams == [(0, 0), (0, 0)]
    assert fake.text == TEXT


def test_an_answer_that_was_lost_is_asked_for_and_nothing_sent_again(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(when_stored=True))
    assert client.upload(TEXT).context_id == "context-1"
    assert len(fake.streams) == 1


def test_a_stream_that_a_proxy_resets_is_gone_on_with(client: Client, fake: FakeServer) -> None:
    reset = "Received RST_STREAM with error code 2"
    fake.breaks.append(Break(after_bytes=CHUNK_BYTES, code=grpc.StatusCode.INTERNAL, message=reset))
    client.upload(TEXT)
    assert fake.streams == [(0, 0), (CHUNK_BYTES, 0)]


def test_an_upload_that_another_stream_still_holds_is_tried_again(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_bytes=CHUNK_BYTES))
    fake.refusals["UploadContext"].extend(
        [refusal(grpc.StatusCode.ABORTED, "another stream is sending it") for _ in range(2)]
    )
    client.upload(TEXT)
    assert fake.text == TEXT


def test_an_upload_of_which_more_had_arrived_than_was_told_is_asked_for_again(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_bytes=2 * CHUNK_BYTES))
    fake.understates.append(CHUNK_BYTES)
    client.upload(TEXT)
    assert fake.text == TEXT


def test_a_stream_that_the_server_gave_up_because_nothing_came_is_gone_on_with(
    client: Client, fake: FakeServer
) -> None:
    stalled = error_details_pb2.ErrorInfo(reason="UPLOAD_STALLED")
    fake.refusals["UploadContext"].append(refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "nothing came for 300 s", stalled))
    client.upload(TEXT)
    assert fake.text == TEXT


@pytest.mark.parametrize(
    ("code", "kind"), [(grpc.StatusCode.INTERNAL, ServerFault), (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied)]
)
def test_what_another_stream_would_not_cure_is_raised_at_once(
    code: grpc.StatusCode, kind: type[Exception], client: Client, fake: FakeServer
) -> None:
    fake.breaks.append(Break(after_bytes=CHUNK_BYTES, code=code, message="broken"))
    with pytest.raises(kind, match="broken"):
        client.upload(TEXT)
    assert len(fake.streams) == 1


def test_every_advance_renews_the_attempts(client: Client, fake: FakeServer) -> None:
    text = "x" * (2 * AT_ONCE.attempts * CHUNK_BYTES)
    fake.breaks.extend(Break(after_bytes=CHUNK_BYTES) for _ in range(2 * AT_ONCE.attempts - 1))
    client.upload(text)
    assert fake.text == text


def test_an_upload_that_gets_no_further_gives_up(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_bytes=CHUNK_BYTES))
    fake.breaks.extend(Break() for _ in range(50))
    with pytest.raises(Unavailable, match="going away"):
        client.upload(TEXT)
    assert fake.streams == [(0, 0), *[(CHUNK_BYTES, 0)] * AT_ONCE.attempts]


def test_an_upload_that_is_forgotten_again_and_again_gives_up(client: Client, fake: FakeServer) -> None:
    for _ in range(50):
        fake.breaks.extend([Break(after_bytes=CHUNK_BYTES), Break(after_bytes=CHUNK_BYTES, forgets=True)])
    with pytest.raises(Unavailable, match="going away"):
        client.upload(TEXT)
    assert len(fake.streams) == 1 + AT_ONCE.attempts


def test_documents_that_were_announced_are_not_announced_again(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_documents=1))
    client.upload(TEXTS)
    announced_first = fake.streams[1][1]
    assert fake.streams == [(0, 0), (0, announced_first)]
    assert announced_first > 1
    assert fake.documents == TEXTS


# ---- a fresh process -------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_in_another_process_by_its_request_id(client: Client, fake: FakeServer) -> None:
    fake.breaks.extend([Break(after_bytes=2 * CHUNK_BYTES), *[Break() for _ in range(AT_ONCE.attempts)]])
    with pytest.raises(Unavailable):
        client.upload(TEXTS, request_id="mine")
    with Client(fake.target, "rlm_key", retry=AT_ONCE) as another:
        another.upload(TEXTS, request_id="mine")
    assert [received for received, _ in fake.streams] == [0, *[2 * CHUNK_BYTES] * (AT_ONCE.attempts + 1)]
    assert fake.documents == TEXTS


def test_an_upload_that_ended_is_not_sent_again(client: Client, fake: FakeServer) -> None:
    first = client.upload(TEXT, request_id="mine")
    assert client.upload(TEXT, request_id="mine") == first
    assert len(fake.streams) == 1


@pytest.mark.parametrize("ended", [True, False])
def test_a_request_id_is_not_taken_for_another_source(ended: bool, client: Client, fake: FakeServer) -> None:
    if not ended:
        fake.breaks.append(Break(after_bytes=CHUNK_BYTES, code=grpc.StatusCode.INTERNAL))
        with pytest.raises(ServerFault):
            client.upload(TEXT, request_id="mine")
    else:
        client.upload(TEXT, request_id="mine")
    with pytest.raises(AlreadyExists, match="the request id 'mine' is that of an upload of something else"):
        client.upload("something else", request_id="mine")


# ---- progress --------------------------------------------------------------------------------------------------------


def watched(client: Client, source: Source) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    client.upload(source, progress=lambda received, size: seen.append((received, size)))
    return seen


def test_progress_begins_at_nothing_and_ends_at_the_whole(client: Client) -> None:
    assert watched(client, TEXT) == [(0, SIZE), (SIZE, SIZE)]


def test_progress_is_what_the_server_has(client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_client.transfer._TELL_SECONDS", 0.001)
    fake.is_paced = True
    seen = watched(client, "x" * (8 * CHUNK_BYTES))
    assert seen == sorted(seen)
    assert {received for received, _ in seen} == {number * CHUNK_BYTES for number in range(9)}


def test_progress_that_cannot_be_asked_for_is_no_failure(
    client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_client.transfer._TELL_SECONDS", 0.001)
    fake.is_paced = True
    fake.refusals["GetUploadStatus"].append(refusal(grpc.StatusCode.UNIMPLEMENTED, "what is that?"))
    assert watched(client, TEXT)[-1] == (SIZE, SIZE)


def test_progress_that_raises_ends_the_upload(client: Client, fake: FakeServer) -> None:
    def stop(received: int, _size: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        client.upload(TEXT, progress=stop)
    assert fake.stored == {}


def test_progress_falls_back_where_the_server_has_forgotten(client: Client, fake: FakeServer) -> None:
    fake.breaks.append(Break(after_bytes=2 * CHUNK_BYTES))
    fake.breaks.append(Break(after_bytes=CHUNK_BYTES, forgets=True))
    assert watched(client, TEXT) == [(0, SIZE), (2 * CHUNK_BYTES, SIZE), (0, SIZE), (SIZE, SIZE)]


# ---- sources that change ---------------------------------------------------------------------------------------------


Change = Callable[[Path], object]


def rewrite(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


CHANGES: dict[str, tuple[Change, str]] = {
    "other content": (rewrite("050", "z" * 50 * 1_111), "050 changed while it was uploaded"),
    "longer": (rewrite("050", TEXTS["050"] + "more"), "050 changed while it was uploaded"),
    "shorter": (rewrite("050", "less"), "050 changed while it was uploaded"),
    "a new file": (rewrite("050a", "new"), "050a changed while it was uploaded"),
    "a new file at the end": (rewrite("100", "new"), "100 changed while it was uploaded"),
    "a file gone": (lambda folder: (folder / "050").unlink(), "051 changed while it was uploaded"),
    "the last file gone": (lambda folder: (folder / "099").unlink(), "of 100 documents only 99 are still there"),
    "all gone": (lambda folder: folder.rename(folder.with_name("gone")), "folder is no longer there"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_since_it_was_measured_is_named_and_nothing_stored(
    change: str, sources: Sources, client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, told = CHANGES[change]
    change_after_measuring(monkeypatch, lambda: make(tmp_path / "folder"))
    with pytest.raises(SourceChanged, match=told):
        client.upload(sources["folder"])
    assert fake.stored == {}
    assert len(fake.streams) <= 1


@pytest.mark.parametrize("kind", ["lines", "archive"])
def test_a_file_of_documents_that_changed_is_noticed(
    kind: str, sources: Sources, client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sources[kind]
    assert isinstance(path, Path)
    change_after_measuring(monkeypatch, lambda: os.utime(path, ns=(1, 1)))
    with pytest.raises(SourceChanged, match=f"{path.name}.* changed while it was uploaded"):
        client.upload(path)
    assert fake.stored == {}


def test_one_text_that_changed_is_noticed(
    client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("text")
    change_after_measuring(monkeypatch, lambda: os.utime(path, ns=(1, 1)))
    with pytest.raises(SourceChanged, match=r"text\.txt changed while it was uploaded"):
        client.upload(path)
    assert fake.stored == {}


def test_a_mapping_that_changed_is_noticed(client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a": "text", "b": "text"}
    change_after_measuring(monkeypatch, lambda: texts.update(b="other text"))
    with pytest.raises(SourceChanged, match="document 'b' changed while it was uploaded"):
        client.upload(texts)


def test_a_change_that_only_the_hash_shows_is_found_by_the_server(
    client: Client, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"a": "text"}
    change_after_measuring(monkeypatch, lambda: texts.update(a="TEXT"))
    with pytest.raises(SourceChanged, match="a source changed while it was uploaded; nothing was stored"):
        client.upload(texts)
    assert fake.stored == {}


def change_after_measuring(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    def measure_and_change(*arguments: Any) -> Upload:
        upload = measure(*arguments)
        change()
        return upload

    monkeypatch.setattr("rlm_client.client.measure", measure_and_change)
