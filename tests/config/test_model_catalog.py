"""What the settings make of models: which providers are shared, who may answer for whom, and tenants' own terms."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from rlm_server.config.model_catalog import Models, build_models
from rlm_server.config.settings import CompatibleModel, ConfigError, Settings, TenantSettings
from rlm_server.tenants.policy import Policy
from tests.broker.stage import Play, answered

LOCAL = "http://127.0.0.1:1/v1"


def stated(base_url: str = LOCAL, key: str = "", price: str = "1") -> CompatibleModel:
    usd = Decimal(price)
    return CompatibleModel(
        base_url=base_url, api_key=SecretStr(key), input_usd_per_million=usd, output_usd_per_million=usd
    )


def models_of(**settings: Any) -> Models:
    return build_models(Settings(**settings), {"played": Play([answered])})


async def test_models_with_one_endpoint_and_one_key_are_one_provider_with_one_cap() -> None:
    models = {"a": stated(), "b": stated(), "c": stated(key="another"), "d": stated("http://127.0.0.1:2/v1")}
    routes = models_of(models=models).routes
    names = {name: routes.route(name).provider_name for name in models}
    assert names == {"a": "compatible:a", "b": "compatible:a", "c": "compatible:c", "d": "compatible:d"}
    assert routes.route("a").provider is routes.route("b").provider
    assert len({id(routes.route(name).provider) for name in models}) == 3
    await routes.close()


async def test_models_of_one_endpoint_keep_their_own_prices() -> None:
    routes = models_of(models={"a": stated(price="1"), "b": stated(price="2")}).routes
    assert routes.route("b").price.rates.input == 2 * routes.route("a").price.rates.input
    await routes.close()


async def test_what_a_failure_costs_is_said_of_a_model_or_else_of_its_provider() -> None:
    models = {"a": stated(), "b": stated(), "c": stated(key="another")}
    said = {"compatible": "none", "compatible:a": "input", "b": "full"}
    routes = models_of(models=models, failure_costs=said).routes
    costs = {name: routes.route(name).failure_cost for name in (*models, "played")}
    assert costs == {"a": "input", "b": "full", "c": "none", "played": "full"}
    await routes.close()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"compatible": "half"}, "must be full, input or none, not 'half'"),
        ({"nobody": "none"}, "no such provider or model"),
    ],
)
def test_what_a_failure_costs_is_one_of_three_and_of_something_that_exists(said: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"failure_costs.*{named}"):
        models_of(failure_costs=said)


async def test_a_route_names_its_fallbacks_in_order() -> None:
    models = models_of(models={"a": stated(), "b": stated()}, fallbacks={"a": ["played", "b"]})
    assert {name: models.routes.route(name).fallbacks for name in ("a", "b", "played")} == {
        "a": ("played", "b"),
        "b": (),
        "played": (),
    }
    await models.routes.close()


@pytest.mark.parametrize(
    ("own", "policy"),
    [
        (TenantSettings(), Policy()),
        (TenantSettings(weight=2.5), Policy(weight=2.5)),
        (TenantSettings(fallbacks=True), Policy(fallbacks=None)),
        (TenantSettings(fallbacks=False), Policy()),
        (TenantSettings(fallbacks=["played"]), Policy(fallbacks=frozenset({"played"}))),
        (TenantSettings(models=["pla*"], images=["core"]), Policy(models=("pla*",), images=("core",))),
    ],
)
def test_a_tenants_settings_become_its_policy(own: TenantSettings, policy: Policy) -> None:
    assert Settings.load(tenants={"acme": own}).terms().policies == {"acme": policy}


def test_by_default_nothing_may_answer_for_another() -> None:
    assert not Policy().allows("played")
    assert Policy(fallbacks=None).allows("played")


def test_a_price_with_which_a_cost_could_not_be_counted_is_refused() -> None:
    with pytest.raises(ValidationError, match="input_usd_per_million"):
        stated(price="1000001")
    assert stated(price="1000000")
