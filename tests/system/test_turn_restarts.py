"""A worker that dies after its code has printed: that the turn began again is told before anything it prints then."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from rlm.v1 import run_pb2, session_pb2

from rlm_server.repl import output
from sandbox.pool.worker_turn import WorkerTurn
from sandbox.wire.frames import Frame, Kind
from tests.servers import Served
from tests.system.books import check_settled, check_story
from tests.system.stage import Play, code

SOURCE = "import time\nfor word in ('one', 'two', 'three'):\n    print(word)\n    time.sleep(0.1)"
PRINTED = "one\ntwo\nthree\n"
DIED = "the process that ran the turn died; the session is as it was before this turn"


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill the worker whose output is heard for the so many-th time, once; what is heard is told on at once."""
    monkeypatch.setattr(output, "EVERY_SECONDS", 0.0)
    left, hear = list[int](), WorkerTurn._heard

    def heard(turn: WorkerTurn, frame: Frame | None) -> None:
        hear(turn, frame)
        if frame is not None and frame.kind is Kind.OUTPUT and left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                process: Any = turn._process
                os.kill(process._process.pid, signal.SIGKILL)

    monkeypatch.setattr(WorkerTurn, "_heard", heard)
    return left


@pytest.mark.parametrize("after", [1, 2])
async def test_a_session_is_told(server: Served, killed_after: list[int], after: int) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        await served.caller.turn(session, "n = 0")
        killed_after.append(after)
        told: list[str] = []
        async for response in served.caller.execute(session, f"n += 1\n{SOURCE}", "request"):
            match response.WhichOneof("event"):
                case "output":
                    told.append(response.output.text)
                case "turn_restarted":
                    told.append(response.turn_restarted.reason)
                case "result":
                    result = response.result
        again = told.index(DIED)
        assert PRINTED.startswith("".join(told[:again]))
        assert len(told[:again]) >= after - 1  # the last that was heard was dropped, or told as well
        assert "".join(told[again + 1 :]) == PRINTED
        assert (result.status, result.output_bytes) == (session_pb2.TURN_STATUS_OK, len(PRINTED))
        assert (await served.caller.turn(session, "n")).printed == "1\n"
        assert (await served.caller.turn(session, f"n += 1\n{SOURCE}", "request")).result == result
        await served.caller.delete(session)
        check_settled(served.data_dir)


@pytest.mark.parametrize("after", [1, 2])
async def test_a_run_is_told_in_its_events_which_are_kept(server: Served, killed_after: list[int], after: int) -> None:
    script = Play(code(SOURCE), code("FINAL(1)"))
    async with server(script) as served:
        killed_after.append(after)
        ended = await served.caller.ask()
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED
        (restarted,) = ended.bodies("turn_restarted")
        assert restarted.reason == DIED
        at = ended.kinds.index("turn_restarted")
        started, finished = ended.kinds.index("code_started"), ended.kinds.index("code_finished")
        assert started < at < finished
        before, since = (
            "".join(event.output.text for event in events if event.WhichOneof("body") == "output")
            for events in (ended.events[started:at], ended.events[at:finished])
        )
        assert PRINTED.startswith(before)
        assert since == PRINTED
        assert ended.events[finished].code_finished.result.output_bytes == len(PRINTED)
        assert f"printed {len(PRINTED)} characters:\n{PRINTED}" in script.asked[1].messages[-1].content
        assert [event async for event in served.caller.watch(ended.run.run_id)] == ended.events
        check_story(ended)
        check_settled(served.data_dir)


async def test_output_that_was_not_told_yet_is_dropped(
    server: Served, killed_after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "EVERY_SECONDS", 60.0)
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        killed_after.append(2)
        kinds = []
        async for response in served.caller.execute(session, SOURCE):
            kinds.append((response.WhichOneof("event"), response.output.text))
        told = [("output", "one\n"), ("output", "two\nthree\n")]
        assert kinds == [told[0], ("turn_restarted", ""), *told, ("result", "")]
