"""Runs that ended long ago are forgotten; what they spent is not."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner

from rlm_server.commands.cli import main
from rlm_server.runs import retention
from tests.servers import Served
from tests.system.books import rows
from tests.system.stage import Play, code, eventually, refusal

TALK = Play(code("FINAL(llm_query('x'))"))


async def test_a_server_forgets_runs_that_ended_long_ago_and_keeps_what_they_spent(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(TALK) as served:
        old = (await served.caller.ask()).run
        spent = (await served.running.ledger.balance("development")).posted
    monkeypatch.setattr(retention, "DAY_MS", 1)
    async with server(TALK, run_retention_days=1) as served:
        await eventually(lambda: not rows(served.data_dir, "SELECT * FROM run WHERE id = ?", old.run_id))
        assert (await refusal(served.caller.get(old.run_id))).reason == "NOT_FOUND"
        kept = (await served.running.ledger.balance("development")).posted
        assert (kept.nano_usd, kept.calls) == (spent.nano_usd, spent.calls)
        assert (await served.running.ledger.balance(old.run_id)).posted.nano_usd == old.spent.nano_usd


async def test_without_the_setting_nothing_is_forgotten_and_the_command_forgets_by_days(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(TALK) as served:
        run = (await served.caller.ask()).run
        data_dir = served.data_dir
        monkeypatch.setenv("RLM_DATA_DIR", str(data_dir))
        assert "is already open for writing" in (
            await asyncio.to_thread(lambda: CliRunner().invoke(main, ["prune", "--run-days", "0"]).output)
        )
    async with server(TALK) as served:
        assert (await served.caller.get(run.run_id)).run_id == run.run_id

    def pruned(*words: str) -> str:
        return CliRunner().invoke(main, ["prune", *words]).output

    assert await asyncio.to_thread(pruned) == "0 runs were forgotten\n"
    assert await asyncio.to_thread(pruned, "--run-days", "1") == "0 runs were forgotten\n"
    assert await asyncio.to_thread(pruned, "--run-days", "0") == "1 runs were forgotten\n"
