"""Metrics in Prometheus' text format, on an HTTP listener of their own. No label holds a tenant, a key or a text."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from rlm_server.api.calls import Method, MethodCounts
from rlm_server.broker.breaker import State
from rlm_server.broker.broker import Broker
from rlm_server.broker.provider import Failure
from rlm_server.ledger import UNITS, Ledger
from rlm_server.runs.counters import RunCounters
from rlm_server.runs.journal import Journal
from rlm_server.runs.state import RunState
from sandbox.pool.pool import WorkerPool

log = logging.getLogger(__name__)

SCRAPE_SECONDS = 10.0
"""The longest that reading the server's state for one scrape may take."""
SILENT_SECONDS = 3.0
"""A connection of which nothing comes for so long is closed."""

_WORDS = {
    "nano_usd": "Nano-US-dollars",
    "tokens": "Input and output tokens",
    "calls": "Model calls",
    "cpu_ms": "Milliseconds of sandboxed code",
}


@dataclass(frozen=True, slots=True)
class MetricsCollector:
    """Collects metrics from the parts of the server. To be read on the server's event loop only."""

    broker: Broker
    ledger: Ledger
    journal: Journal
    pool: WorkerPool
    calls: Mapping[Method, MethodCounts]
    runs: RunCounters
    sessions: Callable[[], int]
    """Tells how many there are, those that hibernate included."""
    commits: Callable[[], int]
    """Tells how many the database has had since the start."""

    async def read(self) -> list[Metric]:
        """Return every metric as it is now."""
        served = [*self._served(), *self._runs()]
        return [*served, *self._calls(), *self._queues(), *await self._money(), *await self._work()]

    def _served(self) -> Iterator[Metric]:
        """The calls, by the names that gRPC's own metrics have elsewhere."""
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=labels)
        handled = CounterMetricFamily("grpc_server_handled", "Calls ended.", labels=[*labels, "grpc_code"])
        seconds = HistogramMetricFamily("grpc_server_handling_seconds", "How long calls took.", labels=labels)
        for method, counts in list(self.calls.items()):
            names = [method.type, method.service, method.name]
            started.add_metric(names, counts.started)
            for code, calls in counts.handled.items():
                handled.add_metric([*names, code], calls)
            seconds.add_metric(names, counts.seconds.buckets(), counts.seconds.sum)
        yield from (started, handled, seconds)

    def _runs(self) -> Iterator[Metric]:
        yield _counter("rlm_runs_started", "Runs created since the start.", self.runs.started)
        ended = CounterMetricFamily("rlm_runs_ended", "Runs that ended since the start.", labels=["state"])
        for state in RunState:
            if state not in (RunState.PENDING, RunState.RUNNING):
                ended.add_metric([state], self.runs.ended[state])
        seconds = HistogramMetricFamily("rlm_run_seconds", "How long runs took from creation to end.")
        seconds.add_metric([], self.runs.seconds.buckets(), self.runs.seconds.sum)
        yield from (ended, seconds)
        yield _counter("rlm_run_spent_nano_usd", "Nano-US-dollars that ended runs had spent.", self.runs.nano_usd)

    def _calls(self) -> Iterator[Metric]:
        told = self.broker.counters
        yield _counter("rlm_model_calls", "Model calls begun.", told.calls)
        yield _counter("rlm_model_attempts", "Attempts at model calls; each has a hold of its own.", told.attempts)
        yield _counter("rlm_model_retries", "Attempts after the first at the same model.", told.retries)
        yield _counter("rlm_model_fallbacks", "Calls that another model answered.", told.fallbacks)
        yield _counters("rlm_model_call_failures", "Calls that got no answer, by why.", told.failures)
        yield _counters("rlm_model_attempt_failures", "Attempts that failed, by why.", told.failed_attempts)
        yield _counter("rlm_model_call_overruns", "Calls that cost more than they held: a defect.", told.overruns)
        yield _counter("rlm_model_unsettled_holds", "Holds that a failing database left unsettled.", told.unsettled)

    def _queues(self) -> Iterator[Metric]:
        yield _gauge("rlm_model_calls_waiting", "Calls that wait among their tenant's own.", self.broker.waiting)
        inside = GaugeMetricFamily("rlm_provider_calls", "Calls in flight to a provider.", labels=["provider"])
        waiting = GaugeMetricFamily(
            "rlm_provider_calls_waiting", "Calls that wait for a provider.", labels=["provider"]
        )
        for provider, load in self.broker.loads().items():
            inside.add_metric([provider], load.inside)
            waiting.add_metric([provider], load.waiting)
        caps = GaugeMetricFamily("rlm_model_cap", "Calls at once that a model is given, as learned.", labels=["model"])
        for model, calls in self.broker.caps().items():
            caps.add_metric([model], calls)
        breakers = GaugeMetricFamily(
            "rlm_breaker", "1 for the state of a model's breaker, the worst of any tenant's.", labels=["model", "state"]
        )
        for model, state in self.broker.states().items():
            for one in State:
                breakers.add_metric([model, one], state is one)
        yield from (inside, waiting, caps, breakers)

    async def _money(self) -> list[Metric]:
        totals = await self.ledger.totals()
        metrics: list[Metric] = []
        for unit in UNITS:
            words = _WORDS[unit]
            posted, pending = getattr(totals.posted, unit), getattr(totals.pending, unit)
            metrics.append(_counter(f"rlm_spent_{unit}", f"{words} spent, since the database began.", posted))
            metrics.append(_gauge(f"rlm_held_{unit}", f"{words} held for what is under way.", pending))
        unresolved, overruns = await self.ledger.unresolved(), await self.ledger.overruns()
        metrics.append(_gauge("rlm_unresolved_holds", "Holds neither posted nor void.", unresolved))
        metrics.append(_counter("rlm_overruns", "Posted holds above what they held, ever: a defect.", overruns))
        return metrics

    async def _work(self) -> list[Metric]:
        progress = await self.journal.progress()
        pending, running = progress.pending_runs, progress.running_runs
        return [
            _gauge("rlm_runs", "Runs under way, those that wait included.", pending + running),
            _gauge("rlm_runs_waiting", "Runs that wait for their turn.", pending),
            _gauge("rlm_nodes", "RLMs under way, those of runs and their children.", progress.nodes),
            _counter("rlm_database_commits", "Commits since the start.", self.commits()),
            _gauge("rlm_sessions", "Sessions of callers, those that hibernate included.", self.sessions()),
            _gauge("rlm_unkept_sessions", "Sessions whose state could not be stored.", self.pool.unkept),
            _gauge("rlm_workers", "Worker processes that tenants have.", self.pool.workers),
            _gauge("rlm_live_sessions", "Sandboxes in memory, not hibernating.", self.pool.live),
        ]


class Scraped(Collector):
    """Hands a scrape over to the event loop. Each scrape comes in a thread of its own."""

    def __init__(self, collector: MetricsCollector, loop: asyncio.AbstractEventLoop) -> None:
        self._collector, self._loop = collector, loop

    def collect(self) -> list[Metric]:
        """Return every metric as it is now.

        Raises:
            TimeoutError: the server could not be asked in time.
        """
        reading = asyncio.run_coroutine_threadsafe(self._collector.read(), self._loop)
        try:
            return reading.result(SCRAPE_SECONDS)
        finally:
            reading.cancel()

    def describe(self) -> list[Metric]:
        """Return nothing, because the metrics are known only when they are collected."""
        return []


class _Listener(ThreadingMixIn, WSGIServer):
    """Serves each scrape in a thread. Closing it waits for the scrapes under way."""

    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.info("a scrape was not answered", exc_info=True)


class _Listener6(_Listener):
    address_family = socket.AF_INET6


class _Scrape(WSGIRequestHandler):
    timeout = SILENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


@asynccontextmanager
async def serve_metrics(listen: str, collector: MetricsCollector) -> AsyncIterator[str]:
    """Answer scrapes at `host:port` until the context ends, and yield its own `host:port`.

    Raises:
        OSError: the address cannot be listened on.
    """
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry()
    registry.register(Scraped(collector, asyncio.get_running_loop()))
    kind = _Listener6 if host.startswith("[") else _Listener
    try:
        listener = await asyncio.to_thread(kind, (host.strip("[]"), int(port)), _Scrape)
    except OSError as error:
        raise OSError(f"metrics_listen: {listen} cannot be listened on: {error}") from error
    listener.set_app(make_wsgi_app(registry))
    thread = Thread(target=listener.serve_forever, name="metrics")
    thread.start()
    try:
        yield f"{host}:{listener.server_port}"
    finally:
        # In threads, because a scrape under way needs the loop to come to its end.
        await asyncio.to_thread(listener.shutdown)
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(listener.server_close)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(name: str, text: str, values: Mapping[Failure, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["failure"])
    for failure in Failure:
        family.add_metric([failure], values.get(failure, 0))
    return family
