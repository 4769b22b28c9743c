"""A tenant is there once, and its policy says what others' models may do for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rlm_server.database.database import Database
from rlm_server.database.engine import Connection
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.tenants import tenants
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.open_calls import OpenCalls
from rlm_server.tenants.policy import Policy
from rlm_server.tenants.tenants import Tenants
from rlm_server.tenants.terms import OwnTerms, Terms
from rlm_server.tenants.watch import Watch


def rows(connection: Connection) -> list[Any]:
    return connection.execute("SELECT id, created_at FROM tenant ORDER BY id").fetchall()


async def test_a_tenant_is_created_once_and_keeps_its_first_time(
    database_at: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1, 100))
    monkeypatch.setattr(tenants, "now", lambda: next(times))
    async with await Database.open(database_at, MIGRATIONS) as database:
        await Tenants(database).ensure("acme")
        await asyncio.gather(*(Tenants(database).ensure(tenant) for tenant in ("acme", "globex", "acme")))
        kept = dict(await database.read(rows))
        assert set(kept) == {"acme", "globex"}
        assert kept["acme"] == 1


async def test_the_terms_of_a_tenant_that_is_deleted_hold_until_nothing_is_left_of_it(
    database_at: str | Path,
) -> None:
    async with await Database.open(database_at, MIGRATIONS) as database:
        terms = Terms(())
        made = Tenants(database, terms)
        await made.create("acme", OwnTerms(redact_contents=True), {})
        async with Watch(made, Keys(database), terms, OpenCalls()) as watch:
            assert terms.redacts_contents("acme")
            await made.delete("acme", force=True)
            await watch.look()
            assert terms.redacts_contents("acme")
        await made.tell_all()
        assert terms.redacts_contents("acme")
        await made.cleared("acme")
        await made.tell_all()
        assert not terms.redacts_contents("acme")


@pytest.mark.parametrize(
    ("fallbacks", "allowed"),
    [
        (Policy().fallbacks, set()),
        (frozenset(), set()),
        (frozenset({"small"}), {"small"}),
        (None, {"small", "large"}),
    ],
    ids=["none stated", "none", "some", "all"],
)
def test_another_model_answers_only_where_the_policy_allows_it(
    fallbacks: frozenset[str] | None, allowed: set[str]
) -> None:
    policy = Policy(fallbacks=fallbacks)
    assert {model for model in ("small", "large") if policy.allows(model)} == allowed
