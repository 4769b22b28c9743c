"""`rlm-server tenant`: makes, shows, changes and deletes tenants, whether or not the server runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rlm_server.commands.tenant_terms import (
    Said,
    WrongAssignment,
    assigned,
    assignments_of,
    budgets_of,
    model_budgets_of,
)
from rlm_server.commands.visit import (
    Visited,
    as_json,
    data_dir,
    labels_of,
    show_json,
    show_table,
    time,
    visit,
)
from rlm_server.ledger import LimitTooLow, usd
from rlm_server.tenants.checks import WrongTerm, check_name
from rlm_server.tenants.tenants import Tenant
from rlm_server.tenants.terms import InForce, OwnTerms

PAGE = 1_000
CLEARED_SECONDS, LOOK_SECONDS = 5.0, 0.2
"""How long a server is waited for that removes what a tenant had, and how often it is looked for."""

_NAMES = (
    "NAME=VALUE says a limit (see docs/limits.md), a weight, models, images or fallbacks (names or patterns, joined by "
    "commas), label.NAME, or a budget: budget_usd, budget_tokens, budget_calls, budget_cpu_ms, each also with minute_, "
    "hour_, day_ or month_ before it, and for some models as model.PATTERN.BUDGET. soft_limits='80%, day 50%, "
    "month 400 usd' says when it is told what was spent. redact_contents=true leaves contents of its runs out of what "
    "is kept and told of them. NAME= alone has it as the configuration says."
)

commands = click.Group()
"""What `rlm-server tenant` can be followed by."""


@commands.command(epilog=_NAMES)
@click.argument("name")
@click.argument("assignments", nargs=-1, metavar="[NAME=VALUE]...")
@as_json
@data_dir
def create(name: str, assignments: tuple[str, ...], as_json: bool, data_dir: Path | None) -> None:
    """Make a tenant. It has no key yet: `rlm-server key create` makes one."""

    async def work(visited: Visited) -> Tenant:
        said = _said(Said(), assignments, visited)
        return await visited.tenants.create(name, said.terms, said.labels)

    try:
        check_name(name)
    except WrongTerm as error:
        raise click.ClickException(f"NAME: {error}") from None
    made = visit(data_dir, work)
    show_json(_json(made)) if as_json else click.echo(f"made the tenant {made.id}")


@commands.command(name="list")
@click.option("--deleted", is_flag=True, help="Those that were deleted too.")
@as_json
@data_dir
def list_(deleted: bool, as_json: bool, data_dir: Path | None) -> None:
    """List the tenants."""

    async def work(visited: Visited) -> list[tuple[Tenant, OwnTerms]]:
        found, page = list[Tenant](), await visited.tenants.page("", PAGE, deleted=deleted)
        while page:
            found += page
            page = await visited.tenants.page(page[-1].id, PAGE, deleted=deleted)
        return [(tenant, visited.terms.of(tenant.id)) for tenant in found]

    found = visit(data_dir, work)
    if as_json:
        show_json([_json(tenant) for tenant, _ in found])
        return
    columns = ("TENANT", "SPENT", "BUDGET", "MADE", "DELETED", "LABELS")
    rows = [
        (
            tenant.id,
            usd(tenant.spent.nano_usd),
            usd(terms.budget.nano_usd) if terms.budget.nano_usd is not None else "",
            time(tenant.created_at),
            time(tenant.deleted_at),
            labels_of(tenant.labels),
        )
        for tenant, terms in found
    ]
    show_table(columns, rows)


@commands.command()
@click.argument("name")
@as_json
@data_dir
def show(name: str, as_json: bool, data_dir: Path | None) -> None:
    """Show a tenant: what it was told, and every budget and limit that is in force for it."""

    async def work(visited: Visited) -> tuple[Tenant, OwnTerms, list[InForce], bool]:
        tenant = await visited.tenants.get(name)
        return tenant, visited.terms.of(name), visited.terms.in_force(name), visited.terms.redacts_contents(name)

    tenant, terms, limits, redacts = visit(data_dir, work)
    if as_json:
        in_force = [
            {"name": one.name, "value": one.value, "unit": one.bounds.unit, "from": one.source} for one in limits
        ]
        show_json(
            {
                **_json(tenant),
                "limits_in_force": in_force,
                "budgets_in_force": {**dict(budgets_of(terms)), **dict(model_budgets_of(terms))},
                "redact_contents_in_force": redacts,
            }
        )
        return
    told = dict(assignments_of(tenant))
    click.echo(f"{tenant.id}, made {time(tenant.created_at)}, changed {time(tenant.changed_at)}")
    spent = tenant.spent
    click.echo(
        f"spent {usd(spent.nano_usd)}, {spent.tokens} tokens, {spent.calls} calls, {spent.cpu_ms} ms of processor"
    )
    click.echo("told: " + (" ".join(f"{name}={value}" for name, value in told.items()) or "nothing of its own"))
    click.echo(f"contents of its runs are {'' if redacts else 'not '}redacted")
    click.echo()
    both = (*budgets_of(terms), *model_budgets_of(terms))
    budgets = [(name, value, "", "tenant" if name in told else "server") for name, value in both]
    rows = [(one.name, f"{one.value:.15g}", one.bounds.unit, str(one.source)) for one in limits]
    show_table(("IN FORCE", "VALUE", "UNIT", "FROM"), [*budgets, *rows])


@commands.command(name="set", epilog=_NAMES)
@click.argument("name")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
@as_json
@data_dir
def set_(name: str, assignments: tuple[str, ...], as_json: bool, data_dir: Path | None) -> None:
    """Change what a tenant may do and spend. A server that runs heeds it within a second."""

    async def work(visited: Visited) -> Tenant:
        def change(tenant: Tenant) -> Tenant:
            said = _said(Said(tenant.terms, tenant.labels), assignments, visited)
            return replace(tenant, terms=said.terms, labels=said.labels)

        try:
            return await visited.tenants.update(name, change)
        except LimitTooLow as error:
            raise click.ClickException(f"budget_{'usd' if error.unit == 'nano_usd' else error.unit}: {error}") from None

    changed = visit(data_dir, work)
    if as_json:
        show_json(_json(changed))
        return
    told = " ".join(f"{name}={value}" for name, value in assignments_of(changed))
    click.echo(f"{changed.id}: {told or 'nothing of its own'}")


@commands.command()
@click.argument("name")
@click.option(
    "--force", is_flag=True, help="Also where it has keys, runs, sessions, uploads or contexts: end them first."
)
@as_json
@data_dir
def delete(name: str, force: bool, as_json: bool, data_dir: Path | None) -> None:
    """Delete a tenant. What it spent stays in the ledger, and its name is never given again."""

    async def work(visited: Visited) -> Tenant:
        deleted = await visited.tenants.delete(name, force=force)
        for _ in range(round(CLEARED_SECONDS / LOOK_SECONDS)):
            if name not in (await visited.tenants.changed_since(-1)).leaving:
                return replace(deleted, cleared_at=deleted.deleted_at)
            await asyncio.sleep(LOOK_SECONDS)
        return deleted

    deleted = visit(data_dir, work)
    if as_json:
        show_json(_json(deleted))
        return
    left = (
        "nothing is left of what it had"
        if deleted.cleared_at is not None
        else ("the server removes what it had, now or when it starts next")
    )
    click.echo(f"deleted the tenant {name}; its keys are revoked, and {left}")


def _said(said: Said, assignments: tuple[str, ...], visited: Visited) -> Said:
    try:
        return assigned(said, assignments, visited.terms)
    except WrongAssignment as error:
        raise click.ClickException(str(error)) from None


def _json(tenant: Tenant) -> dict[str, Any]:
    own, spent = tenant.terms, tenant.spent
    return {
        "tenant_id": tenant.id,
        "labels": dict(tenant.labels),
        "models": list(own.models),
        "images": list(own.images),
        "fallbacks": list(own.fallbacks),
        "weight": own.weight,
        "limits": dict(own.limits),
        "soft_limits": dict(assignments_of(tenant)).get("soft_limits", ""),
        "redact_contents": own.redact_contents,
        "budgets": dict(budgets_of(own)) | dict(model_budgets_of(own)),
        "spent": {"nano_usd": spent.nano_usd, "tokens": spent.tokens, "calls": spent.calls, "cpu_ms": spent.cpu_ms},
        "create_time": time(tenant.created_at),
        "update_time": time(tenant.changed_at),
        "delete_time": time(tenant.deleted_at),
    }
