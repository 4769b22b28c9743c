"""The system prompt: short, the same for all of a run, and true of the models and limits that there are."""

from __future__ import annotations

from pathlib import Path

from rlm_server.broker.prices.table import FREE, Price, Rates
from rlm_server.broker.providers.scripted import ScriptedProvider
from rlm_server.broker.routes import Route, Routes
from rlm_server.ledger import NANO
from rlm_server.repl.functions import FUNCTIONS
from rlm_server.runs.told.profiles import PROFILES, advice
from rlm_server.runs.told.system import MOST_MODELS, Facts, system


def route(dollars: int, window: int | None) -> Route:
    price = Price(Rates(input=dollars * NANO, output=4 * dollars * NANO)) if dollars else FREE
    return Route("scripted", ScriptedProvider({}), "model", price, window)


ROUTES = Routes({"big": route(5, 200_000), "small": route(1, 100_000), "own": route(0, None)})
FACTS = Facts(FUNCTIONS, ROUTES, "big", "small", parallel=64)


def test_the_system_prompt_is_this_one() -> None:
    assert system(FACTS) == (Path(__file__).parent / "system_prompt.txt").read_text()


def test_where_numbers_differ_is_told_of_the_image_that_has_numpy() -> None:
    assert "and others. Mind numpy.\n" in system(Facts(FUNCTIONS, ROUTES, "big", "small", 64, "Mind numpy."))


def test_each_model_is_named_with_what_a_call_costs_and_what_it_reads() -> None:
    said = system(FACTS)
    assert "- small (asked where you name none): $0.026, reads about 300,000 characters at once\n" in said
    assert "- big: $0.13, reads about 600,000 characters at once\n" in said
    assert "- own: free\n" in said


def test_of_many_models_the_cheapest_are_named_beside_those_that_are_asked() -> None:
    many = Routes({f"model-{dollars:02}": route(dollars, None) for dollars in range(1, 30)})
    said = system(Facts(FUNCTIONS, many, "model-29", "model-28", 64))
    assert said.count("- model-") == MOST_MODELS
    assert "- model-28 (asked" in said
    assert "- model-29: " in said
    assert "- model-08: " in said
    assert "- and 19 more, which are dearer.\n" not in said, "the node's own may be dearer than they"
    assert "- and 19 more.\n" in said


def test_a_family_of_models_is_told_what_it_needs_and_others_are_not() -> None:
    assert advice("Qwen3-Coder-480B", {}) == dict(PROFILES)["*qwen*"]
    assert advice("some-model", {}) == ""
    assert system(Facts(FUNCTIONS, ROUTES, "big", "small", 64, advice={"big": "Be brief."})).endswith("\nBe brief.\n")


def test_an_operator_replaces_what_a_family_is_told_or_takes_it_away() -> None:
    assert advice("qwen", {"*qwen*": "Batch."}) == "Batch."
    assert advice("qwen", {"*qwen*": ""}) == ""
    assert advice("qwen", {"q*": "Batch."}) == f"{dict(PROFILES)['*qwen*']}\nBatch."
