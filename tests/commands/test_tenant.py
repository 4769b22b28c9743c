"""`rlm-server tenant` and `rlm-server key` work without a server, on both databases, and name what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlm_server.commands.cli import main
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Ledger
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.customers import Customer

Command = Callable[..., Any]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def command(database_at: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command on a new database, and return what it answers in JSON."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if isinstance(database_at, str):
        monkeypatch.setenv("RLM_DATABASE_URL", database_at)

    def command(*words: str) -> Any:
        done = run(*words, "--json")
        assert done.exit_code == 0, (words, done.output)
        return json.loads(done.stdout)

    return command


def test_a_tenant_and_its_keys_are_made_changed_and_deleted_without_a_server(command: Command) -> None:
    made = command("tenant", "create", "acme", "budget_usd=0.5", "day_budget_calls=9", "label.a=b", "batch=7")
    assert (made["labels"], made["limits"]) == ({"a": "b"}, {"batch": 7})
    assert made["budgets"] == {"budget_usd": "0.5", "day_budget_calls": "9"}
    changed = command("tenant", "set", "acme", "batch=", "max_depth=1", "label.a=", "models=a*,b", "day_budget_calls=")
    assert (changed["labels"], changed["limits"], changed["models"]) == ({}, {"max_depth": 1}, ["a*", "b"])
    assert changed["budgets"] == {"budget_usd": "0.5"}
    paced = command(
        "tenant", "set", "acme", "minute_budget_calls=60", "model.opus*.day_budget_usd=2", "model.a.budget_calls=3"
    )
    of_models = {"model.a.budget_calls": "3", "model.opus*.day_budget_usd": "2"}
    assert paced["budgets"] == {"budget_usd": "0.5", "minute_budget_calls": "60", **of_models}
    again = command("tenant", "set", "acme", "minute_budget_calls=", "model.a.budget_calls=")
    assert again["budgets"] == {"budget_usd": "0.5", "model.opus*.day_budget_usd": "2"}
    told = command("tenant", "set", "acme", "soft_limits=80%, day 50%,month 400 usd, model.opus* hour 7 calls")
    assert told["soft_limits"] == "80%, day 50%, month 400 usd, model.opus* hour 7 calls"
    assert command("tenant", "set", "acme", "soft_limits=")["soft_limits"] == ""
    assert command("tenant", "set", "acme", "redact_contents=true")["redact_contents"] is True
    assert "contents of its runs are redacted" in run("tenant", "show", "acme").output
    assert "redact_contents=true" in run("tenant", "show", "acme").output
    assert command("tenant", "show", "acme")["redact_contents_in_force"] is True
    assert command("tenant", "set", "acme", "redact_contents=false")["redact_contents"] is False
    assert "contents of its runs are not redacted" in run("tenant", "show", "acme").output
    assert command("tenant", "set", "acme", "redact_contents=")["redact_contents"] is None
    shown = command("tenant", "show", "acme")
    assert shown["budgets_in_force"]["model.opus*.day_budget_usd"] == "2"
    in_force = {one["name"]: (one["value"], one["from"]) for one in shown["limits_in_force"]}
    assert (in_force["max_depth"], in_force["batch"]) == ((1, "tenant"), (2_000, "server"))
    key, operators = command("key", "create", "acme", "--label", "x=y"), command("key", "create", "--operator")
    assert (key["tenant_id"], key["kind"], key["secret"].startswith("rlm_")) == ("acme", "tenant", True)
    assert (operators["tenant_id"], operators["kind"]) == ("", "operator")
    assert [one["key_id"] for one in command("key", "list", "acme")] == [key["key_id"]]
    assert [one["key_id"] for one in command("key", "list", "--operator")] == [operators["key_id"]]
    assert "secret" not in command("key", "list", "acme")[0]
    refused = run("tenant", "delete", "acme")
    assert (refused.exit_code, "has 1 keys: end and remove these first, or use force" in refused.output) == (1, True)
    assert command("key", "revoke", key["key_id"])["revoke_time"]
    assert (command("key", "list", "acme"), len(command("key", "list", "acme", "--all"))) == ([], 1)
    assert command("tenant", "delete", "acme")["delete_time"]
    assert [one["tenant_id"] for one in command("tenant", "list")] == []
    assert "its name is not given again" in run("tenant", "create", "acme").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tenant", "create", "Acme"], "Error: NAME: must be 1 to 63 lower-case letters"),
        (["tenant", "create", "x", "max_turn=1"], "Error: max_turn: there is no such limit; is it max_turns?"),
        (
            ["tenant", "create", "x", "max_turns=0"],
            "Error: max_turns: must be a whole number from 1 to 1000 turns, not 0",
        ),
        (["tenant", "create", "x", "max_turns=two"], "Error: max_turns: must be a number, not 'two'"),
        (["tenant", "create", "x", "weight=1000"], "Error: weight: must be from 0.01 to 100, not 1000"),
        (["tenant", "create", "x", "budget_usd=0"], "Error: budget_usd: must be an amount above 0"),
        (["tenant", "create", "x", "day_budget_calls=1.5"], "Error: day_budget_calls: must be a whole number above 0"),
        (
            ["tenant", "create", "x", "minute_budget_usd=1"],
            "Error: minute_budget: a minute may be limited in tokens and",
        ),
        (["tenant", "create", "x", "model.a.nothing=1"], "Error: model.a.nothing: must be model.NAME.BUDGET"),
        (["tenant", "create", "x", "model.a.budget_cpu_ms=1"], "models may be limited in money, tokens and calls, not"),
        (
            ["tenant", "create", "x", "soft_limits=80"],
            "Error: soft_limits: must be like 80%, day 50%, month 400 usd or",
        ),
        (["tenant", "create", "x", "soft_limits=101%"], "soft_limits[0].percent: must be from 1 to 100, not 101"),
        (["tenant", "create", "x", "soft_limits=minute 5%"], "soft_limits[0].span: must be an hour, a day, a month or"),
        (
            ["tenant", "create", "x", "redact_contents=yes"],
            "Error: redact_contents: must be true or false, not 'yes'",
        ),
        (["tenant", "create", "x", "models"], "Error: models: needs a value"),
        (["tenant", "create", "x", f"label.a={'y' * 64}"], "Error: labels.a: may have 63 characters, not 64"),
        (["tenant", "set", "nobody", "weight=1"], "Error: there is no tenant 'nobody'"),
        (["tenant", "show", "nobody"], "Error: there is no tenant 'nobody'"),
        (["tenant", "delete", "nobody", "--force"], "Error: there is no tenant 'nobody'"),
        (["key", "create", "--operator", "--account", "a"], "Error: --account is of a TENANT's key"),
        (["key", "create", "nobody"], "Error: there is no tenant 'nobody'"),
        (["key", "create"], "Error: name a TENANT, or say --operator"),
        (["key", "create", "x", "--operator"], "Error: name a TENANT, or say --operator"),
        (["key", "create", "x", "--expires-days", "0"], "Error: Invalid value for '--expires-days'"),
        (["key", "revoke", "key_x"], "Error: there is no key 'key_x'"),
        (["key", "list", "nobody"], "Error: there is no tenant 'nobody'"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named_with_what_it_may_be(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    refused = run(*words)
    assert refused.exit_code in (1, 2)
    assert message in refused.output
    assert "Traceback" not in refused.output


async def _with_a_customer(at: str | Path) -> None:
    async with await Database.visit(at, MIGRATIONS) as database:
        book = CustomerBook(database, Ledger(database), lambda _: 10)
        await book.create(Customer("acme", "ann"))


def test_a_key_is_bound_to_an_account(command: Command, database_at: str | Path, tmp_path: Path) -> None:
    command("tenant", "create", "acme")
    assert "Error: --account: there is no account 'ann'" in run("key", "create", "acme", "--account", "ann").output
    asyncio.run(_with_a_customer(database_at if isinstance(database_at, str) else next(tmp_path.rglob("*.sqlite"))))
    made = command("key", "create", "acme", "--account", "ann")
    assert made["account_id"] == "ann"
    assert [one["account_id"] for one in command("key", "list", "acme")] == ["ann"]
