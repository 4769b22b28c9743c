"""The client against the real server, a process of its own: what is uploaded is there, whatever breaks meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rlm_client import (
    AlreadyExists,
    Client,
    Context,
    ContextKind,
    InvalidArgument,
    NotFound,
    Retry,
    SourceChanged,
)
from rlm_client.source import Source

from tests.client.real_server import SECONDS, RealServer

MIB = 1 << 20
PATIENT = Retry(attempts=100, first_seconds=0.1, longest_seconds=0.5)

TEXTS = {"a.txt": "the first, with ä and 日本", "sub/b.txt": "", "sub/c.txt": "the third \U0001f3b2"}


@pytest.fixture
def client(real: RealServer) -> Iterator[Client]:
    with Client(real.target, real.key, retry=PATIENT, watch_retry=PATIENT) as made:
        yield made


def documents(client: Client, context: Context) -> dict[str, str]:
    found = client.list_documents(context.context_id)
    return {one.name: client.read_context(context.context_id, document=one.number) for one in found}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    """Give the same documents from everywhere."""
    for name, text in TEXTS.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in TEXTS.items()))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in TEXTS.items():
            archive.writestr(name, text)
    return {
        "folder": tmp_path / "folder",
        "lines": lines,
        "archive": tmp_path / "archive.zip",
        "memory": TEXTS,
        "files": [tmp_path / "folder" / name for name in TEXTS],
    }


@pytest.mark.parametrize("kind", ["folder", "lines", "archive", "memory", "files"])
def test_documents_from_anywhere_are_there_with_their_names(
    kind: str, sources: dict[str, Source], client: Client
) -> None:
    context = client.upload(sources[kind])
    assert documents(client, context) == TEXTS
    assert (context.kind, context.document_count) == (ContextKind.CONTEXT_KIND_DOCUMENTS, 3)
    assert context.character_count == sum(map(len, TEXTS.values()))


@pytest.mark.parametrize("over", ["nothing", "a text", "folder", "lines", "data"])
def test_the_command_answers_over_anything_and_over_nothing(
    over: str, sources: dict[str, Source], real: RealServer, tmp_path: Path
) -> None:
    for name, text in (("a text", "the first"), ("data", '{"first": [1, 2]}')):
        (tmp_path / name).write_text(text)
    paths = {"nothing": None, "a text": tmp_path / "a text", "data": tmp_path / "data", **sources}
    path = paths[over]
    context = [] if path is None else ["--context", str(path)]
    command = [sys.executable, "-m", "rlm_client.cli", "run", *context, "Which is the first?"]
    environment = {**os.environ, "RLM_SERVER": real.target, "RLM_API_KEY": real.key}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(No model answered this")
    assert ("first" in done.stdout.splitlines()[-1]) == (path is not None)


def test_the_same_documents_from_elsewhere_are_the_same_documents(sources: dict[str, Source], client: Client) -> None:
    made = [client.upload(source) for source in sources.values()]
    assert len({one.context_id for one in made}) == len(sources)
    assert len({one.sha256 for one in made}) == 1
    first, *others = ([*client.list_documents(one.context_id)] for one in made)
    assert all(documents == first for documents in others)


def test_one_text_is_a_text(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one text")
    context = client.upload(tmp_path / "text.txt")
    assert (context.kind, context.document_count, context.name) == (ContextKind.CONTEXT_KIND_TEXT, 1, "text.txt")
    assert client.read_context(context.context_id) == "one text"


def test_thousands_of_documents_arrive_in_their_order(client: Client) -> None:
    texts = {f"folder {number % 7}/document {number}": f"text {number} " * (number % 50) for number in range(20_000)}
    context = client.upload(texts)
    found = list(client.list_documents(context.context_id))
    assert [(one.number, one.name, one.character_count) for one in found] == [
        (number, name, len(text)) for number, (name, text) in enumerate(texts.items())
    ]
    assert client.read_context(context.context_id, document=19_999) == texts["folder 0/document 19999"]


def test_a_long_text_is_read_in_parts(client: Client) -> None:
    text = "".join(chr(0x4E00 + number % 5_000) for number in range(600_000))
    context_id = client.upload(text).context_id
    assert client.read_context(context_id) == text
    assert client.read_context(context_id, 7, 500_000) == text[7:500_000]
    assert client.read_context(context_id, 700_000) == ""
    with pytest.raises(InvalidArgument, match="end"):
        client.read_context(context_id, 5, 3)


def test_documents_are_searched(client: Client) -> None:
    context_id = client.upload(TEXTS).context_id
    found = client.search_context(context_id, r"the \w+")
    assert [(one.document, one.start, one.end, one.text) for one in found.matches] == [
        (0, 0, 9, "the first"),
        (2, 0, 9, "the third"),
    ]
    assert not found.next_page_token
    assert [one.document for one in client.search_context(context_id, "the", documents=[2]).matches] == [2]
    assert client.search_context(context_id, "the", limit=1).next_page_token
    with pytest.raises(InvalidArgument, match="pattern"):
        client.search_context(context_id, "(")


def test_contexts_are_listed_and_deleted(client: Client) -> None:
    made = [client.upload({"number": str(number)}) for number in range(3)]
    assert [one.context_id for one in client.list_contexts()][:3] == [one.context_id for one in made[::-1]]
    client.delete_context(made[1].context_id)
    with pytest.raises(NotFound):
        client.get_context(made[1].context_id)
    assert made[1].context_id not in [one.context_id for one in client.list_contexts()]


def test_code_reads_the_documents_and_the_session_says_how_much(client: Client) -> None:
    session = client.create_session(client.upload(TEXTS).context_id)
    printed = "".join(
        response.output.text for response in client.execute(session.session_id, "print(len(context), context[2])")
    )
    assert printed == "3 the third \U0001f3b2\n"
    assert client.get_session(session.session_id).coverage.fraction > 0
    client.delete_session(session.session_id)


# ---- what breaks -----------------------------------------------------------------------------------------------------


class Held:
    """Documents of a mebibyte each, whose second reading, when they are sent, is held before one of them."""

    def __init__(self, letter: str, count: int = 16, before: int = 8) -> None:
        self.letter, self.count, self.before = letter, count, before
        self.readings = 0
        self.is_held = threading.Event()
        self.go_on = threading.Event()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.readings += 1
        for number in range(self.count):
            if self.readings > 1 and number == self.before and not self.go_on.is_set():
                self.is_held.set()
                self.go_on.wait(SECONDS)
            yield str(number), f"{number:08}" + self.letter * (MIB - 8)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_upload_outlives_the_server(number: signal.Signals, real: RealServer, client: Client) -> None:
    source, told, is_half_there = Held(number.name[3]), list[int](), threading.Event()

    def tell(received: int, _size: int) -> None:
        told.append(received)
        if received >= 4 * MIB:
            is_half_there.set()

    with ThreadPoolExecutor() as threads:
        uploading = threads.submit(lambda: client.upload(source, progress=tell))
        assert source.is_held.wait(SECONDS)
        assert is_half_there.wait(SECONDS)
        real.end(number)
        before = len(told)
        real.start()
        source.go_on.set()
        context = uploading.result(SECONDS)
    assert told[before] >= 4 * MIB, "it went on from what was there"
    assert told[-1] == 16 * MIB
    last = client.read_context(context.context_id, 0, 9, document=15)
    assert (context.document_count, last) == (16, "00000015" + source.letter)


KILLED = """
import os, signal, sys, time
from rlm_client import Client
class Corpus:
    readings = 0
    def __iter__(self):
        self.readings += 1
        for number in range(16):
            if self.readings > 1 and number == 8:
                time.sleep(60)
            yield str(number), f"{number:08}" + "k" * ((1 << 20) - 8)
def tell(received, size):
    if received >= 4 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
with Client(sys.argv[1], sys.argv[2]) as client:
    client.upload(Corpus(), progress=tell, request_id="of-two-processes")
"""


def test_an_upload_of_a_process_that_was_killed_is_gone_on_with_by_another(real: RealServer, client: Client) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, real.target, real.key], timeout=SECONDS, check=False)
    assert killed.returncode == -signal.SIGKILL
    source, told = Held("k"), list[int]()
    source.go_on.set()
    context = client.upload(source, request_id="of-two-processes", progress=lambda received, _: told.append(received))
    assert 4 * MIB <= told[0] <= 8 * MIB
    assert context.document_count == 16
    assert client.upload(source, request_id="of-two-processes") == context


def test_a_request_id_is_not_taken_for_something_else(client: Client) -> None:
    client.upload("one thing", request_id="taken")
    with pytest.raises(AlreadyExists, match="'taken' is that of an upload of something else"):
        client.upload("another", request_id="taken")


def test_a_source_that_changed_unseen_is_found_by_the_server(client: Client) -> None:
    class Changing:
        readings = 0

        def __iter__(self) -> Iterator[tuple[str, str]]:
            self.readings += 1
            yield "name", f"text {self.readings}"

    with pytest.raises(SourceChanged, match="a source changed while it was uploaded"):
        client.upload(Changing())


def test_the_command_uploads_lists_and_reads(real: RealServer, sources: dict[str, Source], tmp_path: Path) -> None:
    def rlm(*arguments: str) -> str:
        command = [sys.executable, "-m", "rlm_client.cli", "--server", real.target, "--key", real.key, "context"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    context_id = rlm("upload", str(tmp_path / "folder")).strip()
    assert f"{context_id}  " in rlm("list")
    assert "sub/c.txt" in rlm("show", context_id)
    assert rlm("read", context_id, "--document", "2") == TEXTS["sub/c.txt"]
    assert rlm("search", context_id, "th[a-z]+d") == "2:4-9: third\n"
    rlm("delete", context_id)
