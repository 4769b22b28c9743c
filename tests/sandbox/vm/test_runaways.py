"""Whatever a guest does without end, in Python or in C, is stopped at once, and its session goes on from before."""

from __future__ import annotations

import threading

import pytest

from benchmarks.runaways import GOING, RUNAWAYS, Runaway
from sandbox.limits import MIB
from sandbox.turn import Status, Stop
from tests.sandbox.repl import Repls

PROMPT_SECONDS = 10.0
"""Far more than a stop takes, on however busy a machine, and far less than any of these would go on."""


@pytest.mark.parametrize("runaway", [pytest.param(runaway, id=kind) for kind, runaway in RUNAWAYS.items()])
def test_a_runaway_is_stopped_and_its_session_goes_on_from_its_checkpoint(start: Repls, runaway: Runaway) -> None:
    repl = start(runaway.image, turn_seconds=120, memory_bytes=512 * MIB)
    repl.show("kept = ['as it was']")
    going = threading.Event()

    def heard(_stream: int, data: bytes) -> None:
        if GOING.encode() in data:
            going.set()

    running = repl.begin(f"kept.append('changed')\n{runaway.turn}", None, heard)
    assert going.wait(60)
    threading.Event().wait(0.03)  # so that it is within what it does
    assert not running.done()
    repl.session.interrupt()
    turn = running.result(PROMPT_SECONDS)
    assert turn.status is Status.ROLLED_BACK
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    assert repl.show("kept") == "['as it was']"
