"""The `rlm` command: the answer alone on stdout, what happened on stderr, and how it ended as the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from google.rpc import error_details_pb2
from rlm.v1 import context_pb2, run_pb2, session_pb2
from rlm_client.cli import main

from tests.client.conftest import Rlm
from tests.client.fake_contexts import refusal
from tests.client.fake_server import KEY, FakeServer
from tests.client.story import money, small_run

ESCAPE = "\x1b[2J"


@pytest.fixture(autouse=True)
def events(fake: FakeServer) -> list[run_pb2.RunEvent]:
    fake.events = small_run().events
    return fake.events


def test_the_answer_alone_goes_to_stdout(rlm: Rlm, text: str) -> None:
    result = rlm("run", "--context", text, "How many?")
    assert result.exit_code == 0
    assert result.stdout == "42\n"
    assert "uploaded text.txt (9 bytes)\nrun run-1\nmodel big" in result.stderr
    assert "succeeded · $0.0600 of $0.50" in result.stderr
    assert "\x1b" not in result.stderr


def test_options_reach_the_server(rlm: Rlm, fake: FakeServer, text: str) -> None:
    limits = ["--budget", "0.50", "--max-depth", "0", "--max-turns", "7", "--wall-seconds", "60"]
    rlm("run", "--context", text, "--model", "big", "--sub-model", "small", "--image", "data", *limits, "How many?")
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert (asked.question, asked.context_id, asked.model, asked.sub_model) == (
        "How many?",
        "context-1",
        "big",
        "small",
    )
    assert (asked.image, asked.budget.nano_usd) == ("data", 500_000_000)
    assert (asked.limits.max_turn_count, asked.limits.max_depth, asked.limits.wall_time.seconds) == (7, 0, 60)
    assert asked.limits.HasField("max_depth")


def test_a_schema_is_sent_as_its_file_has_it(rlm: Rlm, fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "string", "pattern": "é"}', encoding="utf-8")
    rlm("run", "--schema", str(tmp_path / "schema.json"), "How many?")
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert asked.answer_schema == '{"type": "string", "pattern": "é"}'


def test_how_to_answer_and_to_write_reaches_the_server(rlm: Rlm, fake: FakeServer) -> None:
    options = ["--instructions", "In German.", "--temperature", "0", "--max-tokens", "9", "--stop", "a", "--stop", "b"]
    options += [
        "--strategy",
        "auto",
        "--max-nodes",
        "5",
        "--max-children",
        "4",
        "--max-errors",
        "3",
        "--max-repeats",
        "2",
    ]
    rlm("run", *options, "How many?")
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert (asked.instructions, asked.strategy) == ("In German.", run_pb2.STRATEGY_AUTO)
    assert asked.sampling == run_pb2.Sampling(temperature=0, max_token_count=9, stop_sequences=["a", "b"])
    assert asked.limits == run_pb2.RunLimits(repeat_count=2, errors_in_a_row_count=3, node_count=5, children_count=4)


def test_what_is_not_asked_for_is_left_to_the_server(rlm: Rlm, fake: FakeServer, text: str) -> None:
    rlm("run", "--context", text, "How many?")
    (asked,) = fake.asked(run_pb2.CreateRunRequest)
    assert not asked.HasField("budget")
    assert asked.limits == run_pb2.RunLimits()
    assert asked.sampling == run_pb2.Sampling()


def test_a_context_can_come_from_stdin(rlm: Rlm, fake: FakeServer) -> None:
    rlm("run", "--context", "-", "How many?", stdin="piped text")
    assert fake.asked(context_pb2.UploadContextRequest)[1].chunk.data == b"piped text"


@pytest.mark.parametrize(
    ("state", "code", "stdout"),
    [
        (run_pb2.RUN_STATE_SUCCEEDED, 0, "best\n"),
        (run_pb2.RUN_STATE_FAILED, 1, ""),
        (run_pb2.RUN_STATE_EXHAUSTED, 3, "best\n"),
        (run_pb2.RUN_STATE_CANCELLED, 4, ""),
    ],
)
@pytest.mark.parametrize("command", ["run", "watch"])
def test_the_exit_code_is_the_end_of_the_run(
    command: str, state: run_pb2.RunState.ValueType, code: int, stdout: str, rlm: Rlm, fake: FakeServer, text: str
) -> None:
    fake.run = run_pb2.Run(run_id="run-1", state=state, answer="best", end_message="why")
    result = rlm("run", "--context", text, "?") if command == "run" else rlm("watch", "run-1")
    assert (result.exit_code, result.stdout) == (code, stdout)


LONG = ["x" * 65_536, f"y{ESCAPE}\n", "z"]
"""An answer of which a run has the first part alone."""


@pytest.mark.parametrize("command", [["run", "?"], ["watch", "run-1"]])
def test_an_answer_that_is_longer_than_its_run_tells_is_printed_whole(
    command: list[str], rlm: Rlm, fake: FakeServer
) -> None:
    fake.tell_beginning_of(LONG)
    result = rlm(*command)
    assert (result.exit_code, result.stdout) == (0, "".join(LONG) + "\n")
    assert "answer of 65,543 bytes\n" in result.stderr


def test_an_answer_that_is_longer_than_its_run_tells_is_shown_whole(rlm: Rlm, fake: FakeServer) -> None:
    fake.tell_beginning_of(LONG)
    shown = [line.rstrip() for line in rlm("show", "run-1").stdout.splitlines()]
    told = [line.removeprefix("  ┃ ") for line in shown[shown.index("answer") + 1 :]]
    assert "".join(told) == "x" * 65_536 + r"y\x1b[2J" + "z"


@pytest.mark.parametrize("amount", ["much", "-1", "0", "0.0000000001"])
def test_a_budget_that_is_no_amount_is_wrong_usage(amount: str, rlm: Rlm, text: str) -> None:
    result = rlm("run", "--context", text, "--budget", amount, "?")
    assert result.exit_code == 2
    assert "--budget" in result.stderr


def test_a_context_that_is_no_text_is_wrong_usage(rlm: Rlm, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG")
    result = rlm("run", "--context", str(path), "?")
    assert result.exit_code == 2
    assert "image.png is not UTF-8" in result.stderr


def test_json_gives_every_event_and_last_the_run(rlm: Rlm, fake: FakeServer, text: str) -> None:
    result = rlm("run", "--json", "--context", text, "How many?")
    *told, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [json_format.ParseDict(event, run_pb2.RunEvent()) for event in told] == fake.events
    assert json_format.ParseDict(last, run_pb2.Run()) == fake.run
    assert "run_started" in told[0]
    assert result.stderr == ""


def test_json_lines_hold_no_control_characters(rlm: Rlm, fake: FakeServer) -> None:
    fake.run.answer = f"{ESCAPE}\x9b\u202e\nline"
    result = rlm("show", "--json", "run-1")
    assert result.stdout.isascii()
    assert result.stdout.rstrip("\n").isprintable()
    assert json.loads(result.stdout)["answer"] == fake.run.answer


def test_a_watch_can_start_in_the_middle(rlm: Rlm, fake: FakeServer) -> None:
    result = rlm("watch", "--json", "--from", str(len(fake.events)), "run-1")
    assert [json.loads(line).get("sequence") for line in result.stdout.splitlines()] == [str(len(fake.events)), None]


def test_a_run_can_be_shown(rlm: Rlm, fake: FakeServer) -> None:
    fake.run = run_pb2.Run(
        run_id="run-1",
        state=run_pb2.RUN_STATE_EXHAUSTED,
        question="How many?",
        model="big",
        answer=f"line one\n{'x' * 400}",
        end_message=f"turns {ESCAPE}",
        spent=money(6, 1400, 4),
    )
    fake.nodes = [
        run_pb2.Node(node_id="a", question="How many?", turn_count=3, spent=money(6)),
        run_pb2.Node(node_id="b", parent_id="a", depth=1, question="And here?", turn_count=1, spent=money(2)),
    ]
    result = rlm("show", "run-1")
    assert result.exit_code == 0
    head = [line.rstrip() for line in result.stdout.splitlines()[:4]]
    assert head == ["run run-1 exhausted", "  question: How many?", "  model: big", r"  reason: turns \x1b[2J"]
    assert "spent: $0.0600 · 1,400 tokens · 4 calls · depth 1" in result.stdout
    assert "    └── unspecified · 1 turns · $0.0200 · And here?" in result.stdout
    answer = result.stdout.partition("answer\n")[2].splitlines()
    assert all(line.startswith("  ┃ ") for line in answer)
    assert "".join(line.removeprefix("  ┃ ") for line in answer) == "line one" + "x" * 400


def execution(
    *, output: str = "", error: session_pb2.TurnError | None = None, stop: str = ""
) -> list[session_pb2.ExecuteResponse]:
    failed = session_pb2.TURN_STATUS_ROLLED_BACK if stop else session_pb2.TURN_STATUS_ERROR
    result = session_pb2.TurnResult(status=failed if error else session_pb2.TURN_STATUS_OK, error=error)
    if stop:
        result.stop_reason = session_pb2.StopReason.Value(f"STOP_REASON_{stop}")
    stdout = session_pb2.Output(stream=session_pb2.OUTPUT_STREAM_STDOUT, text=output)
    stderr = session_pb2.Output(stream=session_pb2.OUTPUT_STREAM_STDERR, text=f"note {ESCAPE}\n")
    call = session_pb2.ModelCallFinished(call_id="a", spent=money(1))
    return [
        session_pb2.ExecuteResponse(output=stdout),
        session_pb2.ExecuteResponse(output=stderr),
        session_pb2.ExecuteResponse(call_finished=call),
        session_pb2.ExecuteResponse(result=result),
    ]


def test_exec_counts_calls_that_were_not_told_singly_and_says_what_was_left_out(
    rlm: Rlm, fake: FakeServer, text: str
) -> None:
    *before, result = execution(output="9\n")
    untold = session_pb2.UntoldCalls(from_memory_count=1_899, failed_count=7)
    left_out = session_pb2.LeftOut(event_count=3, character_count=12_000)
    fake.responses = [
        *before,
        session_pb2.ExecuteResponse(untold_calls=untold),
        session_pb2.ExecuteResponse(left_out=left_out),
        result,
    ]
    said = rlm("exec", "--context", text, "1").stderr
    assert "left out: 3 calls and 12,000 characters of output\n" in said
    assert "llm_query ×1907 · 1907 done · 1899 from memo · 7 failed · $0.0100\n" in said  # noqa: RUF001


def test_exec_runs_code_in_a_session_of_its_own(rlm: Rlm, fake: FakeServer, text: str) -> None:
    fake.responses = execution(output="9\n")
    result = rlm("exec", "--image", "data", "--context", text, "print(len(context))")
    assert (result.exit_code, result.stdout) == (0, "9\n")
    assert result.stderr == "note \\x1b[2J\nllm_query ×1 · 1 done · $0.0100\n"  # noqa: RUF001
    (created,) = fake.asked(session_pb2.CreateSessionRequest)
    assert (created.image, created.context_id) == ("data", "context-1")
    assert fake.asked(session_pb2.ExecuteRequest)[0].code == "print(len(context))"
    assert len(fake.asked(session_pb2.DeleteSessionRequest)) == 1


@pytest.mark.parametrize(
    ("error", "stop", "code", "told"),
    [
        (session_pb2.TurnError(type="E", message="m", traceback="Traceback\n  x\nE: m\n"), "", 1, "  x\nE: m\n"),
        (session_pb2.TurnError(message="60 s"), "TURN_TIME", 3, "rolled back: TURN_TIME: 60 s"),
        (session_pb2.TurnError(message="unreachable"), "TRAP", 1, "rolled back: TRAP: unreachable"),
    ],
)
def test_exec_tells_why_code_stopped(
    error: session_pb2.TurnError, stop: str, code: int, told: str, rlm: Rlm, fake: FakeServer
) -> None:
    fake.responses = execution(error=error, stop=stop)
    result = rlm("exec", "1 / 0")
    assert result.exit_code == code
    assert told in result.stderr


def test_exec_says_that_the_code_began_again(rlm: Rlm, fake: FakeServer) -> None:
    restarted = session_pb2.ExecuteResponse(turn_restarted=session_pb2.TurnRestarted(reason="the process died"))
    fake.responses = [*execution(output="lost\n")[:1], restarted, *execution(output="9\n")]
    result = rlm("exec", "print(9)")
    assert (result.exit_code, result.stdout) == (0, "lost\n9\n")
    assert "the code began again, and what it printed until here is void: the process died" in result.stderr


def test_exec_can_give_json(rlm: Rlm, fake: FakeServer) -> None:
    fake.responses = execution(output="9\n")
    lines = rlm("exec", "--json", "print(9)").stdout.splitlines()
    assert [json_format.Parse(line, session_pb2.ExecuteResponse()) for line in lines] == fake.responses


def test_a_session_is_deleted_even_if_its_turn_could_not_run(rlm: Rlm, fake: FakeServer) -> None:
    fake.refusals["Execute"].append(refusal(grpc.StatusCode.INTERNAL, "broken"))
    assert rlm("exec", "1").exit_code == 1
    assert len(fake.asked(session_pb2.DeleteSessionRequest)) == 1


def test_an_error_is_one_line_with_the_limit_and_what_to_do(rlm: Rlm, fake: FakeServer, text: str) -> None:
    info = error_details_pb2.ErrorInfo(reason="BUDGET_EXCEEDED", metadata={"left": "$0.10"})
    fake.refusals["CreateRun"].append(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"no room{ESCAPE}\nfor it", info))
    result = rlm("run", "--json", "--context", text, "?")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: no room\\x1b[2J\\nfor it [BUDGET_EXCEEDED: left=$0.10]; "
        "ask for a smaller --budget, or have the tenant's raised\n"
    )


def test_a_refused_field_is_wrong_usage(rlm: Rlm, fake: FakeServer, text: str) -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="limits.max_turn_count", description="at most 100")
    fake.refusals["CreateRun"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "the request is refused", request))
    result = rlm("run", "--context", text, "--max-turns", "1000", "?")
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: the request is refused; limits.max_turn_count: at most 100\n")


def test_what_a_server_says_twice_is_told_once(rlm: Rlm, fake: FakeServer) -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="model", description="there is none")
    fake.refusals["GetRun"].append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "model: there is none", request))
    assert rlm("show", "run-1").stderr == "Error: model: there is none\n"


def test_a_server_that_is_not_there_is_named() -> None:
    result = CliRunner().invoke(main, ["--server", "127.0.0.1:1", "--key", KEY, "show", "run-1"])
    assert result.exit_code == 1
    assert result.stderr.endswith("is rlm-server serving at 127.0.0.1:1? (--server, RLM_SERVER)\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "run-1"], 1, "no key for 127.0.0.1:7400"),
        (["--server", "rlm.example:7400", "--key", KEY, "show", "run-1"], 2, "--allow-plaintext"),
        (["--key", "two words", "show", "run-1"], 2, "copy it again"),
    ],
)
def test_a_key_that_cannot_be_used_is_an_error_of_one_line(arguments: list[str], code: int, told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_lost_from_sight_says_how_to_find_it_again(rlm: Rlm, fake: FakeServer, text: str) -> None:
    fake.refusals["WatchRun"].append(refusal(grpc.StatusCode.INTERNAL, "broken"))
    result = rlm("run", "--context", text, "?")
    assert result.exit_code == 1
    assert "a run goes on by itself: rlm watch run-1" in result.stderr


def test_a_run_that_does_not_exist_is_not_said_to_go_on(rlm: Rlm, fake: FakeServer) -> None:
    fake.refusals["WatchRun"].append(refusal(grpc.StatusCode.NOT_FOUND, "no such run"))
    result = rlm("watch", "run-9")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no such run")
