"""`rlm-server key`: makes, lists and revokes keys, whether or not the server runs. It makes the first operator's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rlm_server.clock import now
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
from rlm_server.ledger import AccountClosed, AccountConflict, AccountUnknown, names
from rlm_server.tenants.checks import WrongTerm, check_labels
from rlm_server.tenants.keys import Key

F = TypeVar("F", bound=Callable[..., Any])

PAGE = 1_000
DAY_MS = 86_400_000
MAX_DAYS = 36_500
"""For which a key may work that is to expire."""

commands = click.Group()
"""What `rlm-server key` can be followed by."""


def _whose(command: F) -> F:
    told = "A key of an operator's, for TenantService alone."
    command = click.option("--operator", is_flag=True, help=told)(command)
    return click.argument("tenant", required=False)(command)


def _owner(tenant: str | None, operator: bool) -> str | None:
    if operator is (tenant is not None):
        raise click.UsageError("name a TENANT, or say --operator")
    return tenant


@commands.command()
@_whose
@click.option("--account", default="", metavar="ID", help="For this customer's account alone, and those under it.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A note of yours; may be given again.")
@click.option(
    "--expires-days",
    type=click.FloatRange(0, MAX_DAYS, min_open=True),
    help="It works for so many days. [default: until it is revoked]",
)
@as_json
@data_dir
def create(
    tenant: str | None,
    operator: bool,
    account: str,
    labels: tuple[str, ...],
    expires_days: float | None,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Make a key, and print its secret, which is shown this once."""
    owner, told = _owner(tenant, operator), dict(_label(label) for label in labels)
    if operator and account:
        raise click.UsageError("--account is of a TENANT's key")
    try:
        check_labels(told)
    except WrongTerm as error:
        raise click.ClickException(f"--label: {error}") from None
    expires_at = None if expires_days is None else now() + max(1, round(expires_days * DAY_MS))

    async def work(visited: Visited) -> tuple[Key, str]:
        return await visited.keys.create(owner, account=account, labels=told, expires_at=expires_at)

    try:
        key, secret = visit(data_dir, work)
    except (AccountUnknown, AccountClosed, AccountConflict) as error:
        raise click.ClickException(f"--account: {error}") from None
    if as_json:
        show_json({**_json(key), "secret": secret})
        return
    click.echo(f"{key.id}: a key of {_of(key)}; keep what follows, it is not shown again", err=True)
    click.echo(secret)


@commands.command(name="list")
@_whose
@click.option("--all", "inactive", is_flag=True, help="Those too that were revoked or have expired.")
@as_json
@data_dir
def list_(tenant: str | None, operator: bool, inactive: bool, as_json: bool, data_dir: Path | None) -> None:
    """List the keys of a tenant, or of operators."""
    owner = _owner(tenant, operator)

    async def work(visited: Visited) -> list[Key]:
        if owner is not None:
            await visited.tenants.get(owner)
        found, page = list[Key](), await visited.keys.page(owner, 0, PAGE, inactive=inactive)
        while page:
            found += page
            page = await visited.keys.page(owner, page[-1].number, PAGE, inactive=inactive)
        return found

    found = visit(data_dir, work)
    if as_json:
        show_json([_json(key) for key in found])
        return
    columns = ("KEY", "SECRET", "MADE", "USED", "EXPIRES", "REVOKED", "ACCOUNT", "LABELS")
    rows = [
        (
            key.id,
            f"{key.prefix}…",
            time(key.created_at),
            time(key.used_at),
            time(key.expires_at),
            time(key.revoked_at),
            names.last_of(key.customer, ""),
            labels_of(key.labels),
        )
        for key in found
    ]
    show_table(columns, rows)


@commands.command()
@click.argument("key_id")
@as_json
@data_dir
def revoke(key_id: str, as_json: bool, data_dir: Path | None) -> None:
    """Revoke a key by its id. A server that runs ends the calls made with it within a second."""

    async def work(visited: Visited) -> Key:
        return await visited.keys.revoke(key_id)

    revoked = visit(data_dir, work)
    if as_json:
        show_json(_json(revoked))
        return
    click.echo(f"revoked {revoked.id}, a key of {_of(revoked)}")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--label: must be NAME=VALUE, not {text[:60]!r}")
    return name, value


def _of(key: Key) -> str:
    if key.tenant is None:
        return "an operator"
    return f"the tenant {key.tenant}" + (f", for account {names.last_of(key.customer, '')}" if key.customer else "")


def _json(key: Key) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "kind": "operator" if key.tenant is None else "tenant",
        "tenant_id": key.tenant or "",
        "account_id": names.last_of(key.customer, ""),
        "prefix": key.prefix,
        "labels": dict(key.labels),
        "create_time": time(key.created_at),
        "expire_time": time(key.expires_at),
        "last_use_time": time(key.used_at),
        "revoke_time": time(key.revoked_at),
    }
