"""Puts the server together, serves, and stops it in order."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rlm.v1 import (
    budget_pb2,
    budget_pb2_grpc,
    context_pb2,
    context_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    tenant_pb2,
    tenant_pb2_grpc,
)

from rlm_server.api.admission import Admission
from rlm_server.api.auth import AuthInterceptor
from rlm_server.api.budget import BudgetServicer
from rlm_server.api.calls import Calls
from rlm_server.api.certificates import read_certificate, refuse_plaintext
from rlm_server.api.completion import PassingTexts
from rlm_server.api.context import ContextServicer
from rlm_server.api.port import opened
from rlm_server.api.run import RunServicer
from rlm_server.api.server import Catalog, Gauge, ServerServicer, Used
from rlm_server.api.session import SessionServicer
from rlm_server.api.tenant import TenantServicer
from rlm_server.api.upload_stream import Pace
from rlm_server.broker.broker import Broker
from rlm_server.broker.providers.scripted import Script
from rlm_server.broker.providers.scripted_models import SCRIPTS
from rlm_server.config.defaults import Defaults
from rlm_server.config.model_catalog import Models, build_models
from rlm_server.config.private_files import check_private, session_secret
from rlm_server.config.settings import ConfigError, Settings, nano
from rlm_server.contexts.background import keep_up
from rlm_server.contexts.contexts import Contexts
from rlm_server.contexts.local_files import LocalContextFiles
from rlm_server.contexts.object_store import ObjectStore
from rlm_server.contexts.upload_table import UploadQuota
from rlm_server.contexts.uploads import Uploads
from rlm_server.database.database import Database
from rlm_server.database.migrations import MIGRATIONS
from rlm_server.ledger import Ledger, Limit
from rlm_server.ledger.customer_book import CustomerBook
from rlm_server.ledger.host_bills import HostBills
from rlm_server.repl.functions import FUNCTIONS, Functions
from rlm_server.repl.limits import RunLimits
from rlm_server.runs.journal import Journal
from rlm_server.runs.past.run_file import RunFiles
from rlm_server.runs.redaction import Redaction
from rlm_server.runs.retention import Retention
from rlm_server.runs.run_list import RunList
from rlm_server.runs.supervisor import Supervisor
from rlm_server.runs.tree import Services
from rlm_server.sessions.ends import Ends
from rlm_server.sessions.session_table import SessionTable
from rlm_server.sessions.sessions import Sessions
from rlm_server.sessions.snapshot_table import SnapshotTable
from rlm_server.sessions.snapshots import Snapshots
from rlm_server.sessions.turns import Turns
from rlm_server.shares.host_time import HostTimes, measured_tasks
from rlm_server.shares.limits import TenantLimits
from rlm_server.shares.memory import give_back, settled
from rlm_server.shares.shares import Shares
from rlm_server.tenants.checks import Offered
from rlm_server.tenants.identities import Identities
from rlm_server.tenants.keys import Keys
from rlm_server.tenants.open_calls import OpenCalls
from rlm_server.tenants.removal import Removal
from rlm_server.tenants.tenants import Tenants, TenantUnknown
from rlm_server.tenants.terms import Terms
from rlm_server.tenants.watch import Watch
from rlm_server.tools.deployed import DeployedSpec, DeployedTools, WrongTool
from rlm_server.tools.waiting import WaitingCalls
from rlm_server.webhooks.deliveries import Deliveries
from rlm_server.webhooks.hosts import Hosts
from rlm_server.webhooks.webhooks import Webhooks
from sandbox.cancellation import cancel_and_wait, in_own_thread
from sandbox.limits import Limits, declared
from sandbox.pool.pool import WorkerPool
from sandbox.pool.priority import take_short_turns
from sandbox.pool.snapshots import SessionStore
from sandbox.vm.image import DATA, NUMPY_DIFFERS, ImageSpec, Loaded, prepare, standard_specs
from sandbox.vm.image_cache import Progress
from sandbox.vm.wheels import WheelFile

if TYPE_CHECKING:
    from rlm_server.metrics import MetricsCollector

log = logging.getLogger(__name__)

DEVELOPMENT_TENANT = "development"
SWITCH_SECONDS = 0.0001
"""How long the event loop waits for a thread that computes. Several of them make it wait several times as long."""
IMPORTED_LATER = ("rlm_server.contexts.lineage",)
"""What comes with numpy: a quarter of a second that a server starts without."""
BUSY_SECONDS = 5.0
"""How long a lock of a foreign connection on the database is waited for."""

_SERVICES = (context_pb2, session_pb2, run_pb2, budget_pb2, server_pb2, tenant_pb2)
_NAMES = [service.full_name for module in _SERVICES for service in module.DESCRIPTOR.services_by_name.values()]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is serving. `key` is the development tenant's. `health` and `metrics` are addresses, empty where
    health has no port of its own, and where no metrics are served."""

    address: str
    health: str
    key: str
    models: Models
    ledger: Ledger
    tenants: Tenants
    keys: Keys
    metrics: str


def image_specs(settings: Settings, functions: Functions = FUNCTIONS) -> tuple[ImageSpec, ...]:
    """Return the golden images that sessions start from, with the guest's stubs of these functions loaded."""
    modules = functions.guest_modules
    others = (
        ImageSpec(name, tuple(image.imports), modules, tuple(WheelFile(*one) for one in image.wheel_files))
        for name, image in settings.images.items()
    )
    return (*standard_specs(modules), *others)


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    scripts: Mapping[str, Script] | None = None,
    loaded: Loaded | None = None,
    functions: Functions = FUNCTIONS,
    progress: Progress = lambda _: None,
    listening: Callable[[str], None] = lambda _: None,
    hurry: asyncio.Event | None = None,
) -> AsyncIterator[Running]:
    """Serve until the context ends. Then accept no new calls, stop all runs and sessions, and settle their accounts.

    The port is open before the server is ready: `listening` is told its address then, and health says how far it is.
    Where `hurry` is set, calls that have not ended when the server stops are waited for no longer.
    `loaded` are images of `image_specs` that the caller has loaded, and keeps. Without it they are loaded here.
    `functions` are those that the code of runs and sessions may call.

    Raises:
        ConfigError: a setting is wrong.
        ImageError: the guest image cannot be built or loaded.
        DatabaseError: the database cannot be opened, or another server has it.
        OSError: the address cannot be listened on.
    """
    refuse_plaintext(settings)
    certificate = read_certificate(settings)
    check_private(settings.data_dir)
    models = build_models(settings, SCRIPTS if scripts is None else scripts)
    deployed = _deployed(settings)
    async with await _database(settings) as database, AsyncExitStack() as owned:
        terms, open_calls = settings.terms(), OpenCalls()
        accounts, tenants, keys = Ledger(database), Tenants(database, terms), Keys(database)
        key = await _development_key(settings, tenants, keys)
        await tenants.tell_all()
        tenant_limits = partial(terms.limits, kind=TenantLimits)

        def limits_of(tenant: str) -> RunLimits:
            return replace(terms.limits(tenant, RunLimits), sandbox=terms.limits(tenant, Limits))

        book = CustomerBook(database, accounts, lambda tenant: tenant_limits(tenant).tenant_accounts)
        hosts = Hosts(settings.webhook_hosts)
        webhooks = Webhooks(database, hosts)
        shares = Shares.of(tenant_limits, terms.weights)
        owned.callback(shares.close)
        admission, calls = Admission(shares), Calls()
        checked = AuthInterceptor(keys, Identities(keys, settings.tls_tenants), admission, open_calls)
        port = await owned.enter_async_context(opened(settings, certificate, _NAMES, (calls, checked), database.check))
        listening(port.address)
        if loaded is None:
            loaded = await in_own_thread(lambda: prepare(image_specs(settings, functions), progress=progress))
            owned.callback(loaded.program.close)
        journal = Journal(database)
        contexts = Contexts(
            database,
            LocalContextFiles(settings.data_dir / "contexts"),
            shares.threads,
            objects=_objects(settings),
            cache_bytes=settings.context_cache_bytes,
            retention_days=lambda tenant: tenant_limits(tenant).context_retention_days,
        )
        broker = Broker(
            accounts,
            models.routes,
            models.prices,
            limits=settings.call_limits,
            policies=terms.policies,
        )
        of_pool = settings.pool_limits
        secret = session_secret(settings.data_dir)
        redaction = Redaction(terms.redacts_contents, secret)
        store = SessionStore(settings.data_dir / "sessions", secret, of_pool.stored_bytes)
        pool = WorkerPool(
            loaded,
            sessions=of_pool.sessions,
            reserved=of_pool.reserved_sessions,
            slot_seconds=of_pool.slot_seconds,
            worker_bytes=of_pool.worker_bytes,
            held_bytes=of_pool.held_bytes,
            worker_turns=of_pool.worker_turns,
            waiting_turns=of_pool.waiting_turns,
            idle_worker_seconds=of_pool.idle_worker_seconds,
            store=store,
            rest_seconds=of_pool.rest_seconds,
            unconfined=settings.unconfined,
        )
        pool.prepare()
        shares.host_times.under_way.append(lambda: _charge_sessions(pool, shares.host_times))
        services = Services(
            broker,
            accounts,
            pool,
            journal,
            functions,
            shares,
            redaction,
            RunFiles(settings.data_dir / "runs", secret, store),
            WaitingCalls(shares.held),
            settings.model_advice,
            {DATA: NUMPY_DIFFERS},
        )
        try:
            async with (
                _measured_loop(),
                HostBills(accounts, shares.host_times, pool.take_worker_seconds) as bills,
                contexts,
                Uploads(
                    database,
                    settings.data_dir / "uploads",
                    contexts,
                    shares,
                    quota=lambda tenant: _upload_quota(tenant_limits(tenant)),
                    reserve_bytes=settings.disk_reserve_bytes,
                    rest_seconds=settings.upload_rest_seconds,
                ) as uploads,
                Supervisor(
                    services,
                    contexts,
                    most=settings.runs,
                    tenant_limits=tenant_limits,
                    weights=terms.weights,
                    deployed_of=deployed.of,
                ) as supervisor,
                Sessions(
                    pool,
                    accounts,
                    contexts,
                    SessionTable(database),
                    Turns(broker, accounts, functions, shares, budget_wait_seconds=settings.budget_wait_seconds),
                    Ends(idle_seconds=settings.session_idle_seconds, life_seconds=settings.session_seconds),
                    shares,
                    limits_of,
                    grace_seconds=settings.grace_seconds,
                    hurry=hurry or asyncio.Event(),
                ) as sessions,
                Snapshots(pool, store, SnapshotTable(database), contexts, shares, limits_of) as snapshots,
                _old_runs(journal, supervisor, tenant_limits),
                Removal(
                    tenants,
                    (
                        open_calls.ended,
                        supervisor.delete_all,
                        sessions.delete_all,
                        snapshots.delete_all,
                        uploads.remove_all,
                        contexts.delete_all,
                        book.forget_all,
                        webhooks.forget,
                    ),
                ) as removal,
                Deliveries(database, webhooks, hosts, weights=terms.weights) as deliveries,
                Watch(tenants, keys, terms, open_calls, changed=accounts.heed_limits, leaving=removal.begin) as watch,
            ):
                defaults = _defaults(settings, models, pool, terms)
                admission.refuse_debtors(bills.check)
                accounts.told = deliveries.wake
                server: Any = port.handlers  # what the generated code takes for one
                texts = ContextServicer(
                    contexts,
                    uploads,
                    shares,
                    most_bytes=settings.max_context_bytes,
                    pace=Pace(settings.upload_idle_seconds, settings.upload_bytes_per_second),
                )
                context_pb2_grpc.add_ContextServiceServicer_to_server(texts, server)
                session_pb2_grpc.add_SessionServiceServicer_to_server(
                    SessionServicer(
                        sessions,
                        contexts,
                        accounts,
                        broker.routes_of,
                        defaults,
                        book,
                        snapshots,
                        shares,
                        settings.upload_idle_seconds,
                    ),
                    server,
                )
                run_pb2_grpc.add_RunServiceServicer_to_server(
                    RunServicer(
                        supervisor,
                        journal,
                        contexts,
                        accounts,
                        broker.routes_of,
                        defaults,
                        book,
                        RunList(database),
                        PassingTexts(contexts, uploads, shares),
                        redaction,
                        shares,
                        deployed,
                        lambda: port.ended,
                    ),
                    server,
                )
                offered = Offered(models.routes.models, pool.images)
                budget_pb2_grpc.add_BudgetServiceServicer_to_server(
                    BudgetServicer(accounts, book, shares.threads, offered, webhooks, deliveries), server
                )
                catalog = Catalog(
                    broker.routes_of,
                    models.prices.version,
                    {spec.name: spec.imports for spec in image_specs(settings, functions)},
                )
                tenant_pb2_grpc.add_TenantServiceServicer_to_server(
                    TenantServicer(tenants, keys, terms, watch, removal, accounts, offered), server
                )
                gauges = _gauges(
                    settings,
                    shares,
                    admission,
                    sessions,
                    snapshots,
                    store,
                    contexts,
                    uploads,
                    supervisor,
                    journal,
                    book,
                )
                server_pb2_grpc.add_ServerServiceServicer_to_server(ServerServicer(gauges, catalog, defaults), server)

                def collector() -> MetricsCollector:
                    from rlm_server.metrics import MetricsCollector

                    return MetricsCollector(
                        broker,
                        accounts,
                        journal,
                        pool,
                        calls.counts,
                        supervisor.counters,
                        lambda: len(sessions),
                        lambda: database.commits,
                    )

                async with (
                    _metrics(settings, collector) as metrics,
                    settled(IMPORTED_LATER),
                    port.serving(hurry or asyncio.Event()),
                ):
                    yield Running(port.address, port.health_address, key, models, accounts, tenants, keys, metrics)
        finally:
            await pool.close()
            await broker.close()
            await deployed.close()


@asynccontextmanager
async def _old_runs(
    journal: Journal, supervisor: Supervisor, limits: Callable[[str], TenantLimits]
) -> AsyncIterator[None]:
    """Have runs removed that their tenants keep no longer, as long as the server serves."""
    retention = Retention(journal, lambda tenant: limits(tenant).run_retention_days, supervisor.delete)
    removing = asyncio.create_task(keep_up("runs", retention.remove_old, retention.pause))
    try:
        yield
    finally:
        await cancel_and_wait(removing)


def _deployed(settings: Settings) -> DeployedTools:
    """Return the tools of the deployment.

    Raises:
        ConfigError: what is stated of one cannot be used.
    """
    specs = [
        DeployedSpec(
            name, one.description, one.arguments_schema, one.url, one.entry_point,
            one.authorization.get_secret_value(), one.timeout_seconds, one.result_bytes, nano(one.cost_usd),
            tuple(one.tenants),
        )
        for name, one in settings.deployment_tools.items()
    ]  # fmt: skip
    try:
        return DeployedTools(specs, settings.tool_hosts)
    except WrongTool as error:
        raise ConfigError(str(error)) from None


def _charge_sessions(pool: WorkerPool, host_times: HostTimes) -> None:
    """Charge each tenant what its sessions took of this process."""
    for tenant, seconds in pool.take_host_seconds().items():
        host_times.of(tenant).spend(seconds)


@asynccontextmanager
async def _measured_loop() -> AsyncIterator[None]:
    """Have the steps of tasks measured, and the loop wait little for threads, as long as the server serves."""
    loop, interval = asyncio.get_running_loop(), sys.getswitchinterval()
    before = loop.get_task_factory()
    loop.set_task_factory(measured_tasks)
    sys.setswitchinterval(SWITCH_SECONDS)
    take_short_turns()
    giving_back = asyncio.create_task(give_back())
    try:
        yield
    finally:
        await cancel_and_wait(giving_back)
        loop.set_task_factory(before)
        sys.setswitchinterval(interval)


async def _database(settings: Settings) -> Database:
    return await Database.open(settings.database, MIGRATIONS, busy_timeout=BUSY_SECONDS)


def _defaults(settings: Settings, models: Models, pool: WorkerPool, terms: Terms) -> Defaults:
    return Defaults(
        model=models.model,
        sub_model=models.sub_model,
        budget=Limit(nano_usd=nano(settings.run_budget_usd)),
        terms=terms,
        depth=settings.default_depth,
        images=pool.images,
    )


def _upload_quota(limits: TenantLimits) -> UploadQuota:
    return UploadQuota(limits.context_bytes, limits.tenant_uploads, limits.tenant_contexts)


def _gauges(
    settings: Settings,
    shares: Shares,
    admission: Admission,
    sessions: Sessions,
    snapshots: Snapshots,
    store: SessionStore,
    contexts: Contexts,
    uploads: Uploads,
    supervisor: Supervisor,
    journal: Journal,
    book: CustomerBook,
) -> list[Gauge]:
    """Return what tenants may ask their use of."""

    async def context_bytes(tenant: str) -> int:
        return (await uploads.in_use(tenant))[0]

    async def unfinished(tenant: str) -> int:
        return (await uploads.in_use(tenant))[1]

    def limited(name: str, used: Used) -> Gauge:
        unit = declared(TenantLimits)[name].unit
        return Gauge(name, unit, lambda tenant: getattr(shares.limits(tenant), name), used)

    return [
        limited("tenant_sessions", sessions.count),
        limited("tenant_snapshots", snapshots.count),
        limited("tenant_requests", admission.requests),
        limited("tenant_streams", admission.streams),
        limited("tenant_uploads", unfinished),
        limited("tenant_contexts", contexts.count),
        limited("tenant_held_bytes", shares.held.of),
        limited("tenant_runs", supervisor.working),
        limited("tenant_waiting_runs", supervisor.waiting),
        limited("tenant_kept_bytes", journal.kept_bytes),
        limited("tenant_accounts", book.count),
        limited("context_bytes", context_bytes),
        Gauge("stored_bytes", "bytes", lambda _: settings.pool_limits.stored_bytes, store.stored_bytes),
    ]


def _objects(settings: Settings) -> ObjectStore | None:
    """Return the object store that keeps the contexts, where there is one.

    Raises:
        ConfigError: there is no such store.
    """
    try:
        return ObjectStore.at(settings.context_store) if settings.context_store else None
    except ValueError as error:
        raise ConfigError(f"context_store: {error}") from None


async def _development_key(settings: Settings, tenants: Tenants, keys: Keys) -> str:
    """Return the development tenant's key: the one in the file that a former start wrote, or a new one.

    It is empty where an operator has deleted that tenant. All tenants' budgets are as the settings say from here on,
    unless they were told others.
    """
    await tenants.ensure(DEVELOPMENT_TENANT)
    for tenant, error in (await tenants.settle_all_budgets()).items():
        if tenant == DEVELOPMENT_TENANT:
            raise ConfigError(f"tenant_budget_usd: {error}")
        log.warning("the budget of tenant %s stays as it was: %s", tenant, error)
    path = settings.data_dir / "development-key"
    if path.exists():
        key = path.read_text().strip()
        holder = await keys.holder_of(key)
        if holder is not None and holder.tenant == DEVELOPMENT_TENANT:
            return key
    try:
        _, key = await keys.create(DEVELOPMENT_TENANT)
    except TenantUnknown:
        return ""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    return key


@asynccontextmanager
async def _metrics(settings: Settings, collector: Callable[[], MetricsCollector]) -> AsyncIterator[str]:
    """Serve metrics if the settings ask for it, and yield their address, or "" without."""
    if not settings.metrics_listen:
        yield ""
        return
    # Imported here, because only a server that is asked for metrics needs their library.
    from rlm_server.metrics import serve_metrics

    async with serve_metrics(settings.metrics_listen, collector()) as address:
        yield address
