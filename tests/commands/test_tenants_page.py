"""The commands of docs/tenants.md do what the page says, on the database of a server that runs."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rlm.v1 import budget_pb2, budget_pb2_grpc

from rlm_server.commands.cli import main
from rlm_server.ledger import Limit
from tests.repository.test_readme import commands
from tests.servers import Served
from tests.system.stage import USD, Play, code, refusal

PAGE = (Path(__file__).parents[2] / "docs" / "tenants.md").read_text()


async def told(*words: str) -> str:
    """What a command answers on stdout."""
    done = await asyncio.to_thread(CliRunner().invoke, main, list(words))
    assert done.exit_code == 0, (words, done.output)
    return done.stdout


async def test_the_commands_of_the_page_make_cap_replace_and_delete_while_the_server_runs(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    on_the_page = commands(PAGE)
    assert {tuple(words[1:3]) for words in on_the_page} == {
        *(("tenant", name) for name in ("create", "set", "show", "list", "delete")),
        *(("key", name) for name in ("create", "list", "revoke")),
    }
    async with server(Play(code("FINAL(1)")), data_dir=tmp_path / "rlm-server") as served:
        secrets = list[str]()
        for words in on_the_page:
            if words[1:3] == ["tenant", "set"]:
                words = [re.sub(r"^models=.*", "models=play", word) for word in words]
            if words[1:3] == ["key", "revoke"]:
                words[-1] = json.loads(await told("key", "list", "acme", "--json"))[0]["key_id"]
            if words[1:3] == ["tenant", "delete"]:
                assert (await served.another(secrets[1]).ask()).run.answer == "1"
            if "--account" in words:
                account = budget_pb2.Account(account_id=words[words.index("--account") + 1])
                await budget_pb2_grpc.BudgetServiceStub(served.caller.channel).CreateAccount(
                    budget_pb2.CreateAccountRequest(account=account), metadata=served.another(secrets[-1]).metadata
                )
            said = await told(*words[1:])
            if words[1:4] == ["key", "create", "acme"]:
                secrets.append(said.strip())
                assert (await refusal(served.another(secrets[-1]).get("run_x"))).reason == "NOT_FOUND"
            if words[1:3] == ["key", "revoke"]:
                assert (await refusal(served.another(secrets[0]).get("run_x"))).reason == "UNAUTHENTICATED"
            if words[1:3] == ["tenant", "show"]:
                assert re.search(r"^max_depth +2 +levels +tenant$", said, re.M)
                assert re.search(r"^month_budget_usd +300 +tenant$", said, re.M)
                assert re.search(r"^max_turns +30 +turns +server$", said, re.M)
        assert (await refusal(served.another(secrets[1]).get("run_x"))).reason == "UNAUTHENTICATED"
        listed = json.loads(await told("tenant", "list", "--deleted", "--json"))
        assert [(one["tenant_id"], bool(one["delete_time"])) for one in listed] == [
            ("acme", True),
            ("development", False),
        ]


async def test_budgets_that_are_not_said_are_those_of_the_servers_settings_whatever_a_commands_are(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own = {"data_dir": tmp_path / "rlm-server", "tenant_budget_usd": 7, "day_budget_usd": 3}
    async with server(Play(code("FINAL(1)")), **own) as served:
        await told("tenant", "create", "acme", "budget_calls=50", "day_budget_calls=9")
        acme = served.another((await told("key", "create", "acme")).strip())
        assert (await acme.ask()).run.answer == "1"
        ledger = served.running.ledger
        assert (await ledger.balance("acme")).limit == Limit(nano_usd=7 * USD, calls=50)
        assert [window.balance.limit for window in await ledger.windows("acme")] == [Limit(nano_usd=3 * USD, calls=9)]


async def test_the_program_of_the_page_makes_and_changes_a_tenant(server: Served) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    async with server(Play(code("FINAL(1)"))) as served:
        _, key = await served.running.keys.create(None)
        found = {"key": key}
        program = program.replace("Operator(key)", f"Operator(key, {served.running.address!r})")
        await asyncio.to_thread(exec, program, found)
        assert (await served.another(found["secret"]).ask(budget=None)).run.answer == "1"
        assert served.running.tenants is not None
