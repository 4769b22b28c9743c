"""Examines this machine and its configuration, and reports what works."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from rlm_server.broker.prices.table import table_hashes
from rlm_server.broker.providers.registry import COMPATIBLE, with_keys
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.commands.console import explained, shown_progress
from rlm_server.config.model_catalog import Models, build_models
from rlm_server.config.price_list import PriceList, age
from rlm_server.config.settings import Settings
from rlm_server.database.engine import DatabaseError, DatabaseMissingError, unseen
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.database.snapshot import snapshot
from rlm_server.server import image_specs
from sandbox.memory import pagetable
from sandbox.pool.process import WorkerLost, started
from sandbox.vm.image import Loaded, prepare
from sandbox.vm.image_cache import Progress


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one part."""

    part: str
    holds: bool
    detail: str


def report() -> bool:
    """Print what is found, and return whether all of it holds.

    Raises:
        ClickException: the examination cannot go on: a setting is wrong, or an image cannot be built.
    """
    holds = True
    with explained(), shown_progress() as progress:
        for finding in examine(Settings.load(), progress):
            holds &= finding.holds
            click.echo(f"{'ok ' if finding.holds else 'NO '} {finding.part}: {finding.detail}")
    return holds


def examine(settings: Settings, progress: Progress) -> Iterator[Finding]:
    """Examine one part after another.

    Raises:
        ConfigError: a setting is wrong.
        ImageError: the guest image cannot be built or loaded.
    """
    loaded = prepare(image_specs(settings), progress=progress)
    try:
        yield Finding("images", True, ", ".join(f"{i.name} ({i.size >> 20} MiB)" for i in loaded.images.values()))
        yield asyncio.run(_jail(loaded))
        yield _memory(settings)
    finally:
        loaded.program.close()
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    yield Finding("data directory", os.access(settings.data_dir, os.W_OK), str(settings.data_dir))
    yield examine_database(settings)
    models = build_models(settings, SCRIPTS)
    yield _providers(settings, models)
    yield Finding("models", True, f"{len(models.routes.models)}; {models.model} (root), {models.sub_model} (sub-calls)")
    yield _prices(settings)


def examine_database(settings: Settings) -> Finding:
    """Say which version the database's schema has. It is read, and nothing of it is changed."""
    try:
        with snapshot(settings.database) as found:
            left = len(unseen(MIGRATIONS, found.schema))
    except DatabaseMissingError as missing:
        return Finding("database", True, f"{missing}; the first start makes what it needs")
    except DatabaseError as error:
        return Finding("database", False, str(error))
    then = "; back it up: the next start brings it up to date" if left else ""
    return Finding("database", True, f"schema version {found.schema} of {len(MIGRATIONS)}{then}")


def _providers(settings: Settings, models: Models) -> Finding:
    """Say which providers have a key, and how many models each offers. The keys are not tried."""
    of_provider = Counter(models.routes.route(model).provider_name for model in models.routes.models)
    keys = {spec: bool(settings.api_key(spec)) for spec in with_keys()}
    described = [
        f"{spec.name}: {of_provider[spec.name]} models" if has_key else f"{spec.name}: no {spec.key_variable}"
        for spec, has_key in keys.items()
    ]
    return Finding("providers", True, f"{'; '.join(described)}; {COMPATIBLE.name}: {len(settings.models)} models")


def _prices(settings: Settings) -> Finding:
    listed = PriceList.of(settings, SCRIPTS)
    prices, (found, generated) = listed.prices, table_hashes()
    told = f"{prices.source} {age(prices, datetime.now(UTC).date())}"
    stated = f"{len({**listed.kept, **listed.configured})} stated"
    edited = "" if found == generated else "; prices.json was edited, see rlm-server prices check"
    detail = f"version {prices.version}; {told}; {stated}{edited}"
    return Finding("prices", not edited, detail)


def _memory(settings: Settings) -> Finding:
    """Say how checkpoints are made on this machine. They work in any case."""
    if pagetable.can_watch():
        how = "large sessions' writes are watched"
    else:
        how = "writes cannot be watched (Linux 6.7 and userfaultfd): each turn of a large session copies all its pages"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    sessions = settings.pool_limits.sessions
    enough = files > 2 * sessions + 256
    return Finding("sessions", enough, f"{sessions} live at once, of {files} descriptors; {how}")


async def _jail(loaded: Loaded) -> Finding:
    try:
        worker = await started(loaded)
    except WorkerLost as lost:
        return Finding("jail", False, str(lost))
    await worker.close()
    layers = "no_new_privs, no capabilities, Landlock, seccomp; a worker tried what is forbidden, and could not"
    return Finding("jail", not worker.unconfined, worker.unconfined or layers)
