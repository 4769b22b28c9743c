"""Metrics say what happened, and nothing of whom it happened to."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rlm.v1 import types_pb2
from rlm_client.durations import milliseconds

from rlm_server.broker.provider import Failure, ProviderError
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.ledger import Amounts, Hold, Usage
from tests.servers import Served, Server
from tests.system.stage import USD, Play, code

TALK = Play(code("print(llm_query_batched(['a', 'b', 'c']))", "FINAL('done')"))
UNITS = ("nano_usd", "tokens", "calls", "cpu_ms")
ON = {"metrics_listen": "127.0.0.1:0"}


async def scrape(served: Server) -> str:
    """What a scraper is answered."""
    url = f"http://{served.running.metrics}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


async def samples(served: Server) -> Mapping[tuple[str, ...], float]:
    """Every sample by its name and its labels' values."""
    families = text_string_to_metric_families(await scrape(served))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


async def test_without_being_asked_for_nothing_listens(server: Served) -> None:
    async with server(TALK) as served:
        assert served.running.metrics == ""


async def test_what_was_spent_is_what_the_accounts_say(server: Served) -> None:
    async with server(TALK, day_budget_usd=1, **ON) as served:
        other = await served.tenant("other")
        await asyncio.gather(served.caller.ask(), other.ask())
        seen = await samples(served)
        balances = [await served.running.ledger.balance(name) for name in ("development", "other")]
        for unit in UNITS:
            spent = sum(getattr(balance.posted, unit) for balance in balances)
            assert seen[f"rlm_spent_{unit}_total",] == spent > 0
            assert seen[f"rlm_held_{unit}",] == 0
        assert seen["rlm_model_calls_total",] == seen["rlm_model_attempts_total",] == seen["rlm_spent_calls_total",]
        for name in ("rlm_unresolved_holds", "rlm_overruns_total", "rlm_runs", "rlm_nodes", "rlm_model_calls_waiting"):
            assert seen[name,] == 0, name
        assert all(seen["rlm_model_call_failures_total", failure] == 0 for failure in Failure)


async def test_what_is_under_way_is_told_while_it_is(server: Served) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def sub(prompt: str) -> str:
        asked.set()
        await answer.wait()
        return "ok"

    async with server(Play(code("llm_query('a')", "FINAL('done')"), sub=sub), **ON) as served:
        run = await served.caller.create(budget=types_pb2.Budget(nano_usd=USD, cpu_time=milliseconds(1_000_000)))
        await asked.wait()
        seen = await samples(served)
        for name in ("rlm_runs", "rlm_nodes", "rlm_live_sessions", "rlm_held_calls"):
            assert seen[name,] == 1, name
        assert seen["rlm_unresolved_holds",] == 2  # the turn's own, and the call's
        assert seen["rlm_held_nano_usd",] > 0
        assert seen["rlm_held_cpu_ms",] > 0
        assert seen["rlm_provider_calls", "scripted"] == 1
        assert seen["rlm_breaker", "play", "closed"] == 1
        assert seen["rlm_breaker", "play", "open"] == 0
        answer.set()
        await served.caller.ended(run.run_id)
        assert (await samples(served))["rlm_held_calls",] == 0


async def test_calls_that_fail_are_counted_by_why(server: Served) -> None:
    refused = ProviderError(Failure.REFUSED, "no", billed=False)
    async with server(Play(refused), **ON) as served:
        await served.caller.ask()
        seen = await samples(served)
        assert seen["rlm_model_calls_total",] == 1
        assert seen["rlm_model_call_failures_total", "refused"] == 1
        assert seen["rlm_model_attempt_failures_total", "refused"] == 1
        assert sum(value for (name, *_), value in seen.items() if name == "rlm_model_call_failures_total") == 1
        assert seen["rlm_spent_calls_total",] == 0


async def test_an_overrun_and_a_hold_left_behind_are_seen(server: Served) -> None:
    async with server(TALK, **ON) as served:
        ledger = served.running.ledger
        for name in ("over", "left"):
            hold = Hold(name, "development", Amounts(5, 5, 1), "play", "p", "development", "development", "development")
            await ledger.reserve(hold, deadline=float("inf"))
            await ledger.dispatch(name)
        await ledger.post("over", Amounts(8, 5, 1), Usage(5))
        seen = await samples(served)
        assert seen["rlm_overruns_total",] == 1
        assert seen["rlm_unresolved_holds",] == 1
        assert seen["rlm_spent_nano_usd_total",] == 8
        await ledger.void("left")


async def test_no_tenant_key_run_or_text_is_told(server: Served) -> None:
    question, secret = "what is SECRETQUESTION?", "SECRETTEXT"
    script = Play(code(f"llm_query('{secret}')", f"raise ValueError('{secret}')"))
    async with server(script, **ON) as served:
        other = await served.tenant("tenant-other")
        context = await other.upload(secret * 100)
        asked: dict[str, Any] = {"context_id": context.context_id, "budget": types_pb2.Budget(call_count=5)}
        ended = await other.ask(question, **asked)
        told = await scrape(served)
        private = (secret, question, "tenant-other", "development", served.running.key, context.context_id)
        for text in (*private, *[node.node_id for node in ended.nodes]):
            assert text not in told


async def test_the_counts_of_money_outlive_the_server(server: Served) -> None:
    async with server(TALK, **ON) as served:
        await served.caller.ask()
        before = await samples(served)
    async with server(TALK, **ON) as served:
        after = await samples(served)
        for unit in UNITS:
            spent, earlier = after[f"rlm_spent_{unit}_total",], before[f"rlm_spent_{unit}_total",]
            assert spent >= earlier if unit == "cpu_ms" else spent == earlier  # time is booked a little later
            assert spent > 0
        assert after["rlm_model_calls_total",] == 0


async def test_a_silent_connection_keeps_no_scrape_and_no_stop_waiting(server: Served) -> None:
    async with server(TALK, **ON) as served:
        host, _, port = served.running.metrics.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        try:
            found = await asyncio.gather(*[samples(served) for _ in range(20)])
            assert all(one["rlm_runs",] == 0 for one in found)
        finally:
            for connection in silent[:10]:
                connection.close()
    for connection in silent[10:]:  # the server stopped while these were open
        assert connection.recv(1) == b""
        connection.close()


async def test_it_listens_on_another_address_where_that_is_asked_for(server: Served) -> None:
    async with server(TALK, metrics_listen="[::1]:0") as served:
        assert served.running.metrics.startswith("[::1]:")
        assert (await samples(served))["rlm_runs",] == 0


async def test_an_address_that_is_taken_is_named(server: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"metrics_listen: {address} cannot be listened on"):
            async with server(TALK, metrics_listen=address):
                pass


@pytest.mark.parametrize("value", ["localhost", ":9464", "127.0.0.1:port", "127.0.0.1:65536", "65536"])
def test_an_address_that_is_none_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="metrics_listen"):
        Settings.load(metrics_listen=value)


@pytest.mark.parametrize(
    ("value", "address"), [("", ""), ("9464", "127.0.0.1:9464"), ("10.0.0.1:9464", "10.0.0.1:9464")]
)
def test_a_port_alone_is_one_of_loopback(value: str, address: str) -> None:
    assert Settings.load(metrics_listen=value).metrics_listen == address


DASHBOARD = Path(__file__).parents[2] / "docker" / "grafana-dashboard.json"


async def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(server: Served) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    async with server(TALK, **ON) as served:
        await served.caller.ask()
        families = list(text_string_to_metric_families(await scrape(served)))
    labels: dict[str, set[str]] = {}
    for family in families:
        for name in (family.name, *(sample.name for sample in family.samples)):
            labels.setdefault(name, set())
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    for expression in asked:
        names = re.findall(r"\b(?:rlm|grpc_server)_[a-z_]+", expression)
        assert names, expression
        assert set(names) <= labels.keys(), expression
        used = re.findall(r"(\w+)\s*(?:!=|=~|=)\"", expression)
        used += [one.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for one in group.split(",")]
        assert set(used) <= set().union(*(labels[name] for name in names)), expression
