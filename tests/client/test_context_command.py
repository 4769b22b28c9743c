"""`rlm context`, and what `rlm run` can be given to read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from rlm.v1 import context_pb2, run_pb2, session_pb2

from tests.client.conftest import Rlm
from tests.client.fake_contexts import MAX_READ, Break, refusal
from tests.client.fake_server import FakeServer

ESCAPE = "\x1b[2J"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a directory of two texts."""
    path = tmp_path / "corpus"
    (path / "sub").mkdir(parents=True)
    (path / "a.txt").write_text("first")
    (path / "sub" / "b.txt").write_text("second")
    return path


@pytest.fixture
def stored(rlm: Rlm, folder: Path) -> str:
    return rlm("context", "upload", str(folder)).stdout.strip()


# ---- what a question can be asked about ------------------------------------------------------------------------------


def test_a_run_can_be_given_a_directory(rlm: Rlm, fake: FakeServer, folder: Path) -> None:
    result = rlm("run", "--context", str(folder), "How many?")
    assert result.exit_code == 0
    assert fake.documents == {"a.txt": "first", "sub/b.txt": "second"}
    assert result.stderr.startswith("uploaded corpus (2 documents, 11 bytes)\nrun run-1\n")


def test_a_run_can_be_given_several_paths_of_any_kind(rlm: Rlm, fake: FakeServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"body": "third", "key": "x"}\n')
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("c.txt", "fourth")
    (tmp_path / "single.txt").write_text("fifth")
    paths = [word for path in sorted(tmp_path.iterdir()) for word in ("--context", str(path))]
    result = rlm("run", *paths, "--context", "-", "--text-field", "body", "--name-field", "key", "?", stdin="piped")
    assert result.exit_code == 0
    assert list(fake.documents.items()) == [
        ("corpus/a.txt", "first"),
        ("corpus/sub/b.txt", "second"),
        ("lines.jsonl/x", "third"),
        ("more.zip/c.txt", "fourth"),
        ("single.txt", "fifth"),
        ("stdin", "piped"),
    ]
    assert "uploaded corpus and 4 more (6 documents, 32 bytes)" in result.stderr


def test_one_file_stays_one_text(rlm: Rlm, fake: FakeServer, text: str) -> None:
    rlm("run", "--context", text, "How many?")
    assert fake.text == "some text"


def test_exec_can_be_given_documents_too(rlm: Rlm, fake: FakeServer, folder: Path) -> None:
    fake.responses = [session_pb2.ExecuteResponse(result=session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK))]
    assert rlm("exec", "--context", str(folder), "print(len(context))").exit_code == 0
    assert len(fake.documents) == 2


def test_a_run_can_be_given_a_context_that_was_uploaded(rlm: Rlm, fake: FakeServer, stored: str) -> None:
    result = rlm("run", "--context-id", stored, "How many?")
    assert result.exit_code == 0
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert asked.context_id == stored
    assert len(fake.streams) == 1


def test_a_run_needs_no_context(rlm: Rlm, fake: FakeServer) -> None:
    assert rlm("run", "How many?").exit_code == 0
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert (asked.question, asked.context_id) == ("How many?", "")
    assert fake.streams == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--context", "-", "--context-id", "context-1", "?"], "exclude each other"),
        (["run", "--context", "-", "--context", "-", "?"], "stdin can be read once"),
        (["run", "--context", "/no/such/file", "?"], "'/no/such/file' does not exist"),
        (["context", "upload"], "Missing argument 'PATH...'"),
        (["context", "read", "context-1", "--start", "5", "--end", "3"], "3 is before --start 5"),
        (["context", "search", "context-1", "x", "--limit", "1001"], "1001 is not in the range"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], told: str, rlm: Rlm, fake: FakeServer) -> None:
    result = rlm(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert fake.metadata == []


# ---- upload ----------------------------------------------------------------------------------------------------------


def test_upload_prints_the_id_alone_on_stdout(rlm: Rlm, folder: Path) -> None:
    result = rlm("context", "upload", str(folder), "--name", "mine")
    assert (result.exit_code, result.stdout) == (0, "context-1\n")
    assert result.stderr == "uploaded mine (2 documents, 11 bytes)\n"


def test_upload_can_give_json(rlm: Rlm, fake: FakeServer, folder: Path) -> None:
    result = rlm("context", "upload", "--json", str(folder))
    made = json_format.Parse(result.stdout, context_pb2.Context())
    assert made == fake.stored["context-1"].context
    assert result.stderr == ""


def test_upload_says_what_it_left_out(rlm: Rlm, fake: FakeServer, folder: Path) -> None:
    (folder / "image\u202e.png").write_bytes(b"\x89PNG")
    result = rlm("context", "upload", "--skip-binary", str(folder))
    assert result.exit_code == 0
    assert "left out, as they are not UTF-8: " in result.stderr
    assert "image\\u202e.png" in result.stderr
    assert len(fake.documents) == 2


def test_upload_of_what_is_no_text_is_wrong_usage_that_says_what_to_do(rlm: Rlm, folder: Path) -> None:
    (folder / "image.png").write_bytes(b"\x89PNG")
    result = rlm("context", "upload", str(folder))
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: cannot upload corpus: ")
    assert "image.png is not UTF-8 (invalid start byte at byte 0); convert it, or use skip_binary" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_upload_that_breaks_off_says_how_to_go_on(
    rlm: Rlm, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    fake.breaks.extend(Break(after_documents=2) for _ in range(10))
    result = rlm("context", "upload", str(folder))
    assert result.exit_code == 1
    said, _, request_id = result.stderr.splitlines()[0].rpartition("--request-id ")
    assert said.startswith("what has arrived is kept for a while")
    fake.breaks.clear()
    assert rlm("context", "upload", str(folder), "--request-id", request_id.split()[0]).exit_code == 0
    assert len(fake.uploads) == 1
    assert len(fake.documents) == 2


# ---- list, show, read, search, delete --------------------------------------------------------------------------------


def test_list_shows_the_newest_first(rlm: Rlm, folder: Path, text: str) -> None:
    rlm("context", "upload", "--name", f"evil{ESCAPE}\nname", str(folder))
    rlm("context", "upload", text)
    result = rlm("context", "list")
    assert result.stdout.splitlines() == [
        "context-2  2023-11-14 22:13:20Z                9 characters          1 text       text.txt",
        "context-1  2023-11-14 22:13:20Z               11 characters          2 documents  evil\\x1b[2J\\nname",
    ]


def test_list_can_be_cut_and_give_json(rlm: Rlm, stored: str, text: str) -> None:
    newest = rlm("context", "upload", text).stdout.strip()
    (line,) = rlm("context", "list", "--json", "--limit", "1").stdout.splitlines()
    assert json.loads(line)["context_id"] == newest


def test_show_describes_a_context_and_its_first_documents(rlm: Rlm, stored: str) -> None:
    lines = rlm("context", "show", stored).stdout.splitlines()
    assert lines[:7] == [
        "context context-1",
        "  name: corpus",
        "  created: 2023-11-14 22:13:20Z",
        "  kind: documents",
        "  documents: 2",
        "  characters: 11",
        "  bytes: 11",
    ]
    assert [line.split() for line in lines[8:]] == [
        ["0", "5", "characters", "a.txt"],
        ["1", "6", "characters", "sub/b.txt"],
    ]


def test_show_says_that_there_are_more_documents(rlm: Rlm, fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('"x"\n' * 25)
    stored = rlm("context", "upload", str(tmp_path / "c.jsonl")).stdout.strip()
    result = rlm("context", "show", stored)
    assert len(result.stdout.splitlines()) == 8 + 20
    assert "… and 5 more: --documents shows them" in result.stderr
    result = rlm("context", "show", "--documents", stored)
    assert len(result.stdout.splitlines()) == 8 + 25
    assert result.stderr == ""


def test_show_can_give_json(rlm: Rlm, stored: str) -> None:
    (context,) = rlm("context", "show", "--json", stored).stdout.splitlines()
    assert json.loads(context)["document_count"] == "2"
    _, *documents = rlm("context", "show", "--json", "--documents", stored).stdout.splitlines()
    assert [json.loads(line)["name"] for line in documents] == ["a.txt", "sub/b.txt"]


def test_read_prints_exactly_what_is_there(rlm: Rlm, tmp_path: Path) -> None:
    text = "ä" * (2 * MAX_READ) + f"{ESCAPE}the end"
    (tmp_path / "long.txt").write_text(text)
    stored = rlm("context", "upload", str(tmp_path / "long.txt")).stdout.strip()
    assert rlm("context", "read", stored).stdout == text
    assert rlm("context", "read", stored, "--start", str(2 * MAX_READ + 4)).stdout == "the end"
    assert rlm("context", "read", stored, "--end", "3").stdout == "äää"
    assert rlm("context", "read", stored, "--end", str(MAX_READ)).stdout == text[:MAX_READ]


def test_read_can_give_a_document_and_json(rlm: Rlm, stored: str) -> None:
    assert rlm("context", "read", stored, "--document", "1").stdout == "second"
    result = rlm("context", "read", stored, "--document", "1", "--start", "3", "--json")
    assert json.loads(result.stdout) == {"document": 1, "start": 3, "end": 6, "text": "ond"}


def test_search_prints_a_line_for_each_match(rlm: Rlm, stored: str) -> None:
    assert rlm("context", "search", stored, "s.").stdout.splitlines() == ["0:3-5: st", "1:0-2: se"]
    result = rlm("context", "search", stored, "s.", "--limit", "1")
    assert result.stdout == "0:3-5: st\n"
    assert "there may be more than these 1" in result.stderr
    assert rlm("context", "search", stored, "s.", "--document", "1").stdout == "1:0-2: se\n"


def test_search_can_give_json(rlm: Rlm, stored: str) -> None:
    lines = rlm("context", "search", stored, "s.", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["st", "se"]


def test_delete_takes_a_context_away(rlm: Rlm, fake: FakeServer, stored: str) -> None:
    result = rlm("context", "delete", stored)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "deleted context-1\n")
    assert fake.stored == {}
    assert rlm("context", "delete", stored).exit_code == 1


def test_an_error_of_the_server_is_one_line(rlm: Rlm, fake: FakeServer) -> None:
    fake.refusals["SearchContext"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "pattern: missing )"))
    result = rlm("context", "search", "context-1", "(")
    assert (result.exit_code, result.stderr) == (2, "Error: pattern: missing )\n")
