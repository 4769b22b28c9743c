"""The `rlm` command as a process: interrupted, and with a terminal to write to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlm.v1 import run_pb2, session_pb2

from tests.client.fake_server import KEY, FakeServer
from tests.client.story import small_run

HOSTILE = "\x1b[2J\x07done"

SECONDS = 60  # far more than any of this takes


@contextmanager
def started(fake: FakeServer, *arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rlm_client.cli", "--server", fake.target, "--key", KEY, *arguments]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def read_all(terminal: int) -> bytes:
    """Read what was written to a terminal whose other side is closed."""
    read = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux ends a terminal
            piece = b""
        if not piece:
            return read
        read += piece


def test_an_interrupt_cancels_the_run_on_the_server(fake: FakeServer, text: str) -> None:
    fake.events, fake.holds = small_run().events[:5], True
    with started(fake, "run", "--context", text, "How many?") as process:
        assert fake.watched.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert stdout == b""
    assert len(fake.asked(run_pb2.CancelRunRequest)) == 1
    assert b"interrupted: cancelling run run-1\nrun run-1 cancelled" in stderr
    assert b"Traceback" not in stderr


def test_an_interrupt_under_json_ends_with_the_run(fake: FakeServer, text: str) -> None:
    fake.holds = True
    with started(fake, "run", "--json", "--context", text, "How many?") as process:
        assert fake.watched.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert json.loads(stdout.splitlines()[-1])["state"] == "RUN_STATE_CANCELLED"


def test_an_interrupted_watch_leaves_the_run_alone(fake: FakeServer) -> None:
    fake.holds = True
    with started(fake, "watch", "run-1") as process:
        assert fake.watched.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert fake.asked(run_pb2.CancelRunRequest) == []
    assert b"a run goes on by itself: rlm watch run-1" in stderr


def test_an_interrupted_exec_deletes_its_session(fake: FakeServer) -> None:
    fake.holds = True
    with started(fake, "exec", "while True: pass") as process:
        assert fake.watched.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert stderr == b"interrupted\n"
    assert len(fake.asked(session_pb2.DeleteSessionRequest)) == 1


def test_an_interrupt_while_the_run_is_being_created_cancels_it(fake: FakeServer, text: str) -> None:
    fake.holds = fake.holds_creation = True
    with started(fake, "run", "--context", text, "How many?") as process:
        assert fake.creating.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        # The command takes the signal at once; the run exists only after it.
        fake.create.set()
        process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert len(fake.asked(run_pb2.CancelRunRequest)) == 1


def test_a_pipe_gets_the_answer_exactly(fake: FakeServer) -> None:
    fake.run.answer = HOSTILE
    with started(fake, "watch", "run-1") as process:
        stdout, _ = process.communicate(timeout=SECONDS)
    assert stdout == HOSTILE.encode() + b"\n"


def test_a_terminal_gets_the_answer_neutralised(fake: FakeServer) -> None:
    fake.run.answer = HOSTILE
    assert on_terminal(fake, "watch", "run-1") == b"\\x1b[2J\\x07done\r\n"


def test_a_terminal_gets_the_output_of_exec_neutralised(fake: FakeServer) -> None:
    output = session_pb2.Output(stream=session_pb2.OUTPUT_STREAM_STDOUT, text=HOSTILE)
    result = session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK)
    fake.responses = [session_pb2.ExecuteResponse(output=output), session_pb2.ExecuteResponse(result=result)]
    assert on_terminal(fake, "exec", "print()") == b"\\x1b[2J\\x07done"


def on_terminal(fake: FakeServer, *arguments: str) -> bytes:
    """Run the command with a terminal as its stdout; give what the terminal got."""
    terminal, side = pty.openpty()
    try:
        with started(fake, *arguments, stdout=side) as process:
            os.close(side)
            written = read_all(terminal)
            process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        return written
    finally:
        os.close(terminal)
