"""A client can ask what the server is, which models and images it has, and what its requests may ask for."""

from __future__ import annotations

from typing import Any

from rlm.v1 import server_pb2, server_pb2_grpc

from rlm_server.config.settings import Settings
from rlm_server.repl.limits import RunLimits
from sandbox.limits import Limits, declared
from tests.servers import Served
from tests.system.stage import Caller, Play, refusal


def stub(caller: Caller) -> Any:
    return server_pb2_grpc.ServerServiceStub(caller.channel)


async def test_the_limits_told_are_those_of_the_callers_tenant(server: Served) -> None:
    own = {"other": {"max_turns": 3, "memory_bytes": 100 << 20}}
    async with server(Play(""), tenants=own) as served:
        other = await served.tenant("other")
        told = {}
        for caller in (served.caller, other):
            info = await stub(caller).GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=caller.metadata)
            assert info.version
            assert info.features
            assert {one.name for one in info.limits} == declared(RunLimits).keys() | declared(Limits).keys()
            assert all(one.unit for one in info.limits)
            told[caller] = {one.name: one.value for one in info.limits}
        assert told[served.caller]["max_turns"] == Settings.load().run_limits().max_turns
        assert (told[other]["max_turns"], told[other]["memory_bytes"]) == (3, 100 << 20)


async def test_every_model_on_offer_is_listed_once_over_all_pages_with_its_price(server: Served) -> None:
    local = {
        f"local-{number}": {
            "base_url": "http://127.0.0.1:1/v1",
            "input_usd_per_million": "0.5",
            "output_usd_per_million": "2",
            "cache_read_usd_per_million": "0.1",
            "context_window": 8_000,
        }
        for number in range(3)
    }
    async with server(Play(""), models=local) as served:
        caller, models, request = served.caller, [], server_pb2.ListModelsRequest(page_size=2)
        while True:
            page = await stub(caller).ListModels(request, metadata=caller.metadata)
            assert len(page.models) <= 2
            models += page.models
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        named = {model.name: model for model in models}
        assert list(named) == sorted(named)
        assert len(named) == len(models) == len(served.running.models.routes.models)
        (tier,) = named["local-1"].price_tiers
        assert (tier.above_input_token_count, tier.input_nano_usd, tier.output_nano_usd) == (
            0,
            500_000_000,
            2_000_000_000,
        )
        assert (tier.cache_read_nano_usd, tier.cache_write_nano_usd) == (100_000_000, 500_000_000)
        assert (named["local-1"].provider, named["local-1"].context_window_token_count) == ("compatible", 8_000)
        assert [name for name, model in named.items() if model.default_model] == [served.running.models.model]
        wrong = server_pb2.ListModelsRequest(page_token="nonsense")
        assert (await refusal(stub(caller).ListModels(wrong, metadata=caller.metadata))).fields == ["page_token"]


async def test_images_are_listed_with_what_they_have_imported(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        answer = await stub(caller).ListImages(server_pb2.ListImagesRequest(), metadata=caller.metadata)
        images = {one.name: list(one.modules) for one in answer.images}
        assert list(images)[:2] == ["core", "data"]
        assert "json" in images["core"]
        assert "pandas" in images["data"]
