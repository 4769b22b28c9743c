"""Whatever a worker or a guest claims of a turn, its result can be told to the caller and kept as an event."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given

from rlm_server.api import responses
from rlm_server.repl.events import CodeFinished
from rlm_server.runs.events import Event, EventOrigin, from_json, to_json
from sandbox.wire.turns import read_turn
from tests.sandbox.wire.claims import OBSERVED, claims
from tests.servers import Served
from tests.system.stage import Play


@given(claims())
def test_what_was_taken_from_a_worker_can_be_told_and_kept(told: dict[str, Any]) -> None:
    turn = None
    with suppress(TypeError, ValueError):
        turn = read_turn(told.get("turn"), OBSERVED)
    if turn is not None:
        event = Event(1, 0, EventOrigin("run", "", 0), CodeFinished(turn))
        assert responses.event(event).code_finished.result.SerializeToString() or turn.output_bytes == 0
        assert from_json(to_json(event.body)) == event.body


async def test_what_a_guest_claims_of_its_variables_is_told_within_what_can_be_counted(server: Served) -> None:
    forged = (
        "import _door\n_door.call('sandbox.report', error=None, variables="
        "[['huge', 'int', 10**30], ['less', 'int', -5], ['half', 'int', 0.5], ['none', 'int', None], ['n', 'list', 7]])"
    )
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        await served.caller.turn(session, "import _door")
        seen = await served.caller.turn(session, forged)
        assert [(v.name, v.length if v.HasField("length") else -1) for v in seen.result.variables] == [
            ("huge", -1), ("less", -1), ("half", -1), ("none", -1), ("n", 7),
        ]  # fmt: skip
