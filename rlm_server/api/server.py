"""The servicer of `ServerService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.api import requests, responses
from rlm_server.api.auth import tenant
from rlm_server.api.field_checks import FieldChecks
from rlm_server.broker.prices.table import Price, Rates
from rlm_server.broker.providers.stops import takes_stops
from rlm_server.broker.providers.temperatures import MOST, taken
from rlm_server.broker.routes import Route, Routes
from rlm_server.config.defaults import Defaults
from sandbox.limits import declared

FEATURES = (
    "answer_schemas",
    "answer_streams",
    "resumable_uploads",
    "run_event_filters",
    "run_instructions",
    "run_sampling",
    "run_strategies",
    "run_tools",
    "search_pages",
)
"""What this server can do that a client may ask for. A name never changes its meaning."""

Used = Callable[[str], int | Awaitable[int]]
"""Returns what a tenant has, at once or after a look into the database."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One thing that a tenant may have so much of. `limit` and `used` return how much, in `unit`, of a tenant's."""

    name: str
    unit: str
    limit: Callable[[str], int]
    used: Used


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the server offers: a tenant's models at the prices of a table, and images with what each has imported."""

    routes_of: Callable[[str], Routes]
    price_version: str
    images: Mapping[str, Sequence[str]]


class ServerServicer(server_pb2_grpc.ServerServiceServicer):
    """Tells tenants what the server is and offers, and what they may have of it."""

    def __init__(self, gauges: Sequence[Gauge], catalog: Catalog, defaults: Defaults) -> None:
        self._gauges, self._catalog, self._defaults = gauges, catalog, defaults

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Any
    ) -> server_pb2.GetServerInfoResponse:
        """Tell what the server is, and what the caller's requests may ask for."""
        limits = self._defaults.limits_of(tenant())
        response = server_pb2.GetServerInfoResponse(version=version("rlm-server"), features=FEATURES)
        for values in (limits, limits.sandbox):
            for name, bounds in declared(type(values)).items():
                response.limits.add(name=name, unit=bounds.unit, value=getattr(values, name))
        return response

    async def ListModels(self, request: server_pb2.ListModelsRequest, context: Any) -> server_pb2.ListModelsResponse:
        """List the models on offer."""
        with FieldChecks() as check:
            size = check(requests.page_size, request.page_size, 100, 1_000)
            last = check(requests.page_key, request.page_token, "models")
        routes = self._catalog.routes_of(tenant())
        rest = [name for name in routes.models if last is None or name > last]
        written = [self._model(name, routes.route(name)) for name in rest[:size]]
        page, token = responses.page("models", written, len(rest), lambda shown: rest[shown - 1])
        return server_pb2.ListModelsResponse(models=page, next_page_token=token)

    def _model(self, name: str, route: Route) -> server_pb2.Model:
        hottest = taken(route.provider_name, route.upstream, MOST)
        return server_pb2.Model(
            name=name,
            provider=route.provider_name.partition(":")[0],
            price_tiers=_tiers(route.price),
            context_window_token_count=0 if route.context_window is None else route.context_window,
            price_version=self._catalog.price_version,
            default_model=name == self._defaults.model,
            default_sub_model=name == self._defaults.sub_model,
            max_temperature=0 if hottest is None else hottest,
            takes_stop_sequences=takes_stops(route.provider_name, route.upstream),
        )

    async def ListImages(self, request: server_pb2.ListImagesRequest, context: Any) -> server_pb2.ListImagesResponse:
        """List the golden images."""
        modules = self._catalog.images
        images = [server_pb2.Image(name=name, modules=modules[name]) for name in self._defaults.images_of(tenant())]
        return server_pb2.ListImagesResponse(images=images)

    async def GetQuota(self, request: server_pb2.GetQuotaRequest, context: Any) -> server_pb2.GetQuotaResponse:
        """Tell what the caller's tenant may have, and has."""
        redacts = self._defaults.terms.redacts_contents(tenant())
        response = server_pb2.GetQuotaResponse(redact_contents=redacts)
        for one in self._gauges:
            used = one.used(tenant())
            response.quotas.add(
                name=one.name,
                unit=one.unit,
                limit=one.limit(tenant()),
                used=used if isinstance(used, int) else await used,
            )
        return response


def _tiers(price: Price) -> list[server_pb2.PriceTier]:
    tiers: list[tuple[int, Rates]] = [(0, price.rates), *((tier.above, tier.rates) for tier in price.tiers)]
    return [
        server_pb2.PriceTier(
            above_input_token_count=above,
            input_nano_usd=rates.input,
            output_nano_usd=rates.output,
            cache_read_nano_usd=rates.read,
            cache_write_nano_usd=rates.write,
        )
        for above, rates in tiers
    ]
