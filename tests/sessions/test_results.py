"""Results of turns are remembered in bounded memory, and a request that has run does not run again unawares."""

from __future__ import annotations

import pytest

from rlm_server.database.requests import RequestIdReused
from rlm_server.repl.events import CodeFinished
from rlm_server.sessions import results as module
from rlm_server.sessions.results import ENTRY_BYTES, ResultForgotten, Results
from rlm_server.sessions.turn import TurnRequest
from rlm_server.shares.held import Held
from sandbox.turn import TurnError
from tests.runs.stage import a_turn

TENANT = "acme"
LONG = TurnError("ValueError", "x" * 16_000)
PLENTY = 1 << 40


def remembering(most: int = PLENTY) -> tuple[Results, Held]:
    held = Held(lambda _: most)
    return Results(held), held


def remember(results: Results, request: str, session: str = "ses_1", error: TurnError | None = None) -> None:
    results.remember(TENANT, session, request, "content", CodeFinished(a_turn("printed", "as well", error)))


def fate(results: Results, request: str, session: str = "ses_1") -> str:
    try:
        return "unknown" if results.find(session, request) is None else "known"
    except ResultForgotten:
        return "forgotten"


def test_what_is_remembered_is_the_result_without_what_was_printed() -> None:
    results, held = remembering()
    remember(results, "a", error=LONG)
    found = results.find("ses_1", "a")
    assert found is not None
    assert (found.result.stdout, found.result.stderr, found.result.error) == ("", "", LONG)
    assert held.of(TENANT) > len(LONG.message)
    assert fate(results, "a", "ses_2") == "unknown"


def test_a_request_that_asks_for_something_else_than_the_one_with_its_id_did_is_refused() -> None:
    results, _ = remembering()
    asked = TurnRequest("x = 1", "once")
    results.remember(TENANT, "ses_1", "turn_1", asked.content_sha256, CodeFinished(a_turn()))
    assert results.find("ses_1", "turn_1", asked) == CodeFinished(a_turn())
    with pytest.raises(RequestIdReused, match="'once'"):
        results.find("ses_1", "turn_1", TurnRequest("x = 2", "once"))


def test_of_a_session_the_last_results_are_remembered_and_then_that_there_was_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_RESULTS", 2)
    monkeypatch.setattr(module, "REMEMBERED_REQUESTS", 4)
    results, held = remembering()
    for number in range(6):
        remember(results, str(number))
    assert [fate(results, str(number)) for number in range(6)] == ["unknown"] * 2 + ["forgotten"] * 2 + ["known"] * 2
    assert held.of(TENANT) < 7 * ENTRY_BYTES
    results.forget(TENANT, "ses_1")
    assert held.of(TENANT) == 0
    assert fate(results, "5") == "unknown"


def test_the_results_of_a_session_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESULT_BYTES", 60_000)
    results, held = remembering()
    for number in range(20):
        remember(results, str(number), error=LONG)
    assert [fate(results, str(number)) for number in range(20)] == ["forgotten"] * 17 + ["known"] * 3
    assert held.of(TENANT) <= 60_000 + 20 * ENTRY_BYTES
    remember(results, "huge", error=TurnError("ValueError", "x" * 100_000))
    assert [fate(results, request) for request in ("19", "huge")] == ["forgotten", "forgotten"]


def test_where_the_tenant_may_have_no_more_memory_its_oldest_results_go_whichever_session_they_are_of() -> None:
    results, held = remembering(100_000)
    for session in ("ses_1", "ses_2"):
        for number in range(4):
            remember(results, str(number), session, LONG)
    assert [fate(results, str(number)) for number in range(4)] == ["forgotten"] * 3 + ["known"]
    assert [fate(results, str(number), "ses_2") for number in range(4)] == ["known"] * 4
    assert held.of(TENANT) <= 100_000
    results.remember("globex", "ses_3", "a", "content", CodeFinished(a_turn(error=LONG)))
    assert fate(results, "0", "ses_2") == "known", "another tenant's are its own"


def test_ids_are_forgotten_last_and_the_newest_is_always_kept() -> None:
    results, held = remembering(10 * ENTRY_BYTES)
    for number in range(100):
        remember(results, str(number))
    fates = [fate(results, str(number)) for number in range(100)]
    assert fates[:80] == ["unknown"] * 80
    assert set(fates[95:]) <= {"forgotten", "known"}
    assert held.of(TENANT) <= 10 * ENTRY_BYTES
    results.forget(TENANT, "ses_1")
    assert held.of(TENANT) == 0
    assert (results._sessions, results._tenants) == ({}, {})
