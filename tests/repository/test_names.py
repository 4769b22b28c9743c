"""No page, docstring or comment speaks of a path, a module or a name that is not there."""

from __future__ import annotations

import pytest

from tests.repository.names import ELSEWHERE, Prose, missing, prose, tracked


def test_every_path_and_name_that_is_written_down_exists() -> None:
    read = list(prose())
    assert {"README.md", "sandbox/door.py", "proto/rlm/v1/run.proto"} <= {written.path for written in read}
    assert [f"{written.path}: {name}" for written in read for name in missing(written)] == []


@pytest.mark.parametrize(
    "text",
    [
        "It is in `store/shelf.py`.",
        "It is in `runs/feed.py`.",
        "`feed.py` keeps it.",
        "See docs/nothing.md.",
        "Run `pytest tests/nothing.py -x`.",
        "`sandbox.pool.nothing` has it.",
        "`runs.feed` has it.",
        "`ledger.nothing` has it.",
        "`Ledger.nothing()` has it.",
        "`RunService.Nothing` does it.",
        "[page](nothing.md)",
        "[page](money.md#nothing)",
    ],
)
def test_what_has_moved_is_seen(text: str) -> None:
    assert missing(Prose("docs/page.md", text))


@pytest.mark.parametrize(
    "text",
    [
        "`runs/node.py`, `rlm_server/runs/node.py`, `rlm_server/runs/`, docs/money.md and `node.py`",
        "`sandbox.door`, `sandbox.wait`, `ledger.Ledger`, `Ledger.reserve()`, `RunService.CreateRun`, `Run.answer`",
        "`asyncio.gather`, `pydantic.create_model`, `str.find`, `/tmp/x`, `~/.local/share`, `https://host/path`",
        "[page](money.md#holds), [other](https://example.org/x)",
        "```sh\nrlm run --context docs a/b\n```",
    ],
)
def test_what_is_there_is_not(text: str) -> None:
    assert missing(Prose("docs/page.md", text)) == []


def test_names_of_the_code_beside_a_comment_are_known() -> None:
    assert missing(Prose("sandbox/pool/pool.py", "`nothing.at_all`"))
    assert missing(Prose("sandbox/pool/pool.py", "`nothing.at_all`", frozenset({"nothing"}))) == []


def test_nothing_is_excused_that_is_there() -> None:
    assert not [name for name in ELSEWHERE if name in tracked()]
