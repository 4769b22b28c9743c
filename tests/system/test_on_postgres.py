"""The whole server on Postgres: what it keeps is there after its end, and a second server is kept away."""

from __future__ import annotations

from pathlib import Path

import pytest
from rlm.v1 import context_pb2, run_pb2, types_pb2

from rlm_server.config.settings import ConfigError, Settings
from rlm_server.database.engine import DatabaseOwnedError
from rlm_server.ledger import Query
from rlm_server.server import serving
from sandbox.vm.image import Loaded
from tests.servers import Served
from tests.system.stage import USD, Play, code

TEXT = "A line about nothing.\n" * 2000 + "The word is marzipan.\n"
FIND = code("print(llm_query(context[-22:]))", "FINAL(context[-10:].strip())")


async def test_runs_contexts_and_money_are_kept_on_postgres(server: Served, postgres_url: str) -> None:
    async with server(Play(FIND), database_url=postgres_url) as served:
        context = await served.caller.upload(TEXT)
        ended = await served.caller.ask(context_id=context.context_id, request_id="once")
        assert (ended.run.state, ended.run.answer) == (run_pb2.RUN_STATE_SUCCEEDED, "marzipan.")
        session = await served.caller.open_session(context_id=context.context_id)
        assert (await served.caller.turn(session, "print(len(context))")).printed == f"{len(TEXT)}\n"
        await served.caller.delete(session)
        spent = (await served.running.ledger.balance("development")).posted.nano_usd
        assert not (served.data_dir / "rlm.sqlite").exists()
    async with server(Play(FIND), database_url=postgres_url) as served:
        assert await served.caller.get(ended.run.run_id) == ended.run
        assert [event async for event in served.caller.watch(ended.run.run_id)] == ended.events
        again = await served.caller.create(context_id=context.context_id, request_id="once")
        assert again.run_id == ended.run.run_id
        ledger = served.running.ledger
        assert (await ledger.balance("development")).posted.nano_usd == spent  # the server's own time is billed later
        assert sum(e.actual.nano_usd for e in await ledger.entries(Query("development"))) == spent
        listed = await served.caller.contexts.ListContexts(
            context_pb2.ListContextsRequest(), metadata=served.caller.metadata
        )
        assert [found.context_id for found in listed.contexts] == [context.context_id]
        await served.caller.contexts.DeleteContext(
            context_pb2.DeleteContextRequest(context_id=context.context_id), metadata=served.caller.metadata
        )


async def test_children_share_a_budget_on_postgres(server: Served, postgres_url: str) -> None:
    play = Play(
        code("print(rlm_query_batched(['spend'] * 5, [str(i) for i in range(5)]))", "FINAL('done')"),
        sub=lambda prompt: "x" * 16_000,
        spend=code("for i in range(1000): llm_query(f'{context} {i}')"),
    )
    async with server(play, database_url=postgres_url) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=USD))
        assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED, ended.run.end_message
        assert USD // 2 < ended.run.spent.nano_usd <= USD
        assert await served.running.ledger.unresolved() == 0
        assert (await served.running.ledger.balance("development")).carved.nano_usd == 0


async def test_a_second_server_on_the_same_database_is_refused(
    server: Served, postgres_url: str, tmp_path: Path, images: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_server.server.BUSY_SECONDS", 0.1)
    async with server(Play(FIND), database_url=postgres_url):
        other = Settings.load(data_dir=tmp_path / "other", listen="127.0.0.1:0", database_url=postgres_url)
        with pytest.raises(DatabaseOwnedError):
            async with serving(other, loaded=images):
                pass


def test_a_url_of_another_database_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigError, match=r"database_url.*postgresql://") as refused:
        Settings.load(database_url="mysql://root:hunter2@localhost/rlm")
    assert "hunter2" not in str(refused.value)
