"""What is in force for a tenant: what it was told, else what is configured of it, else what holds for all."""

from __future__ import annotations

import asyncio

from rlm_server.ledger import Limit, Span
from rlm_server.repl.limits import RunLimits
from rlm_server.shares.gate import Gate
from rlm_server.shares.limits import TenantLimits
from rlm_server.tenants.policy import Policy
from rlm_server.tenants.terms import OwnTerms, Source, Terms


def terms_of(**configured: OwnTerms) -> Terms:
    for_all = OwnTerms(budget=Limit(nano_usd=100), windows={Span.DAY: Limit(nano_usd=9)})
    return Terms((TenantLimits(), RunLimits(batch=50)), for_all=for_all, configured=configured)


def test_each_thing_that_is_said_goes_before_what_is_said_below_it() -> None:
    terms = terms_of(acme=OwnTerms(models=("a",), weight=2, limits={"batch": 40, "max_turns": 4}))
    terms.tell("acme", OwnTerms(images=("core",), limits={"batch": 30}, budget=Limit(calls=5)))
    assert (terms.limits("acme", RunLimits).batch, terms.limits("acme", RunLimits).max_turns) == (30, 4)
    assert terms.policy("acme") == Policy(2, frozenset(), ("a",), ("core",))
    assert terms.of("acme").budget == Limit(nano_usd=100, calls=5)
    assert terms.of("acme").limit(Span.DAY) == Limit(nano_usd=9)
    sources = {one.name: one.source for one in terms.in_force("acme")}
    assert [sources[name] for name in ("batch", "max_turns", "children", "tenant_runs")] == [
        *(Source.TENANT, Source.CONFIGURATION, Source.SERVER, Source.SERVER)
    ]
    terms.tell("acme", None)
    assert (terms.limits("acme", RunLimits).batch, terms.policy("acme").images) == (40, ())
    assert terms.limits("globex", RunLimits) == RunLimits(batch=50)


def test_contents_are_redacted_as_the_tenant_was_told_else_as_is_configured_of_it_else_of_all() -> None:
    for for_all, configured, told, wanted in (
        (None, None, None, False),
        (True, None, None, True),
        (True, False, None, False),
        (True, False, True, True),
        (False, True, False, False),
        (False, None, True, True),
    ):
        terms = Terms(
            (), for_all=OwnTerms(redact_contents=for_all), configured={"acme": OwnTerms(redact_contents=configured)}
        )
        terms.tell("acme", OwnTerms(redact_contents=told))
        assert terms.redacts_contents("acme") is wanted
        assert terms.of("acme").redact_contents in (wanted, None)
        assert terms.redacts_contents("globex") is bool(for_all)


def test_a_whole_limit_stays_whole() -> None:
    terms = terms_of()
    terms.tell("acme", OwnTerms(limits={"batch": 30.0, "wall_seconds": 1.5}))
    limits = terms.limits("acme", RunLimits)
    assert (limits.batch, type(limits.batch), limits.wall_seconds) == (30, int, 1.5)


async def test_a_gate_goes_by_the_weights_as_they_are_now() -> None:
    terms, entered = terms_of(), list[str]()
    gate, hold = Gate(calls=1, weights=terms.weights), asyncio.Event()

    async def call(tenant: str, number: int) -> None:
        async with gate.slot(tenant, tenant, deadline=None):
            entered.append(f"{tenant}{number}")
            await hold.wait()

    tasks = [asyncio.ensure_future(call(tenant, number)) for number in range(9) for tenant in ("heavy", "light")]
    await asyncio.sleep(0)
    terms.tell("heavy", OwnTerms(weight=8))
    tasks += [asyncio.ensure_future(call(tenant, 9)) for tenant in ("heavy", "light")]
    await asyncio.sleep(0)
    hold.set()
    await asyncio.gather(*tasks)
    assert sum(one.startswith("heavy") for one in entered[1:9]) >= 6


def test_patterns_name_models_and_images() -> None:
    policy = Policy(models=("gpt-*", "o?"), fallbacks=frozenset({"gpt-5"}), images=("da*",))
    assert [policy.permits(model) for model in ("gpt-5", "o3", "o33", "claude")] == [True, True, False, False]
    assert (policy.allows("gpt-5"), policy.allows("gpt-4")) == (True, False)
    assert not Policy(models=("a",), fallbacks=None).allows("b"), "what may not be asked may not answer either"
    assert policy.images_of(("core", "data")) == ("data",)
