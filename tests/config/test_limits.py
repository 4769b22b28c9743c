"""A limit is declared once: its default, bounds, unit and doc are those of settings, tenants, requests and the page."""

from __future__ import annotations

from typing import Any

import pytest

from rlm_server.broker.limits import CallLimits
from rlm_server.config.settings import ConfigError, Settings
from rlm_server.repl.limits import RunLimits
from sandbox.limits import Limits, PoolLimits, declared
from tests.config.programs import result_of

DECLARING = (Limits, PoolLimits, RunLimits, CallLimits)


@pytest.mark.parametrize("limits", DECLARING)
def test_every_default_is_within_its_bounds_and_every_limit_is_explained(limits: Any) -> None:
    default = limits()
    assert declared(limits)
    for name, bounds in declared(limits).items():
        assert bounds.least <= getattr(default, name) <= bounds.most, name
        assert bounds.unit.endswith("s"), name
        assert bounds.doc.endswith("."), name


def test_a_server_without_configuration_has_the_declared_defaults() -> None:
    settings = Settings.load()
    assert settings.run_limits() == settings.terms().limits("anybody", RunLimits) == RunLimits()
    assert settings.run_limits().sandbox == Limits()
    assert settings.pool_limits == PoolLimits()
    assert settings.call_limits == CallLimits()


def test_every_limit_can_be_set_and_not_beyond_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, limits in (("", RunLimits), ("SANDBOX__", Limits), ("", PoolLimits), ("", CallLimits)):
        for name, bounds in declared(limits).items():
            for variable in (f"RLM_{prefix}{name.upper()}", f"RLM_TENANTS__ACME__{name.upper()}"):
                if variable.startswith("RLM_TENANTS") and limits in (PoolLimits, CallLimits):
                    continue
                monkeypatch.setenv(variable, str(bounds.least))
                Settings.load()
                monkeypatch.setenv(variable, str(bounds.least - 1))
                with pytest.raises(ConfigError, match=rf"{name}: must be .* {bounds.unit}, not .* \(from {variable}\)"):
                    Settings.load()
                monkeypatch.delenv(variable)


def test_what_a_tenant_does_not_say_is_as_for_all() -> None:
    settings = Settings.load(
        sandbox={"files": 5, "turn_seconds": 3},
        max_turns=4,
        tenants={"acme": {"files": 9, "max_depth": 0, "sub_tokens": 7}, "globex": {"weight": 2}},
    )
    terms = settings.terms()
    acme, sandbox = terms.limits("acme", RunLimits), terms.limits("acme", Limits)
    assert (sandbox.files, sandbox.turn_seconds) == (9, 3)
    assert (acme.max_turns, acme.max_depth, acme.sub_tokens) == (4, 0, 7)
    assert terms.limits("globex", RunLimits) == settings.run_limits()
    assert (terms.limits("globex", Limits).files, terms.limits("globex", RunLimits).max_turns) == (5, 4)


def with_toys(code: str, **environment: str) -> Any:
    """What a program says where one more limit of a sandbox and of a run are declared."""
    return result_of(f"import json\nfrom tests.config import toy_limits\n{code}", environment)


LOADED = """
from rlm_server.config.settings import Settings
settings = Settings.load()
all, terms = settings.run_limits(), settings.terms()
acme, sandbox = terms.limits("acme", type(all)), terms.limits("acme", type(all.sandbox))
print(json.dumps([all.sandbox.toys, all.game_seconds, sandbox.toys, acme.game_seconds]))
"""

WRONG = """
from rlm_server.config.settings import ConfigError, Settings
try:
    Settings.load()
except ConfigError as error:
    print(json.dumps(str(error)))
"""

ASKED = """
from rlm_server.api.errors import InvalidField
from rlm_server.api.limits import lowered
from rlm_server.config.settings import Settings
from rlm_client.durations import milliseconds
limits = Settings.load().run_limits()
def asked(**values):
    try:
        return str(lowered("limits", toy_limits.message(**values), limits.sandbox if "toys" in values else limits))
    except InvalidField as error:
        return f"{error.field}: {error}"
print(json.dumps([asked(toys=5), asked(toys=1), asked(toys=8), asked(),
                  asked(game_time=milliseconds(1500)), asked(game_time=milliseconds(2501))]))
"""

PAGE = """
from rlm_server.config import page
print(json.dumps([line for line in page.text().splitlines() if "toys" in line or "game_seconds" in line]))
"""


def test_a_new_limit_is_a_setting_of_all_and_of_tenants() -> None:
    assert with_toys(LOADED) == [7, 2.5, 7, 2.5]
    set_for_all = {"RLM_SANDBOX__TOYS": "3", "RLM_GAME_SECONDS": "1.5"}
    assert with_toys(LOADED, **set_for_all) == [3, 1.5, 3, 1.5]
    assert with_toys(LOADED, **set_for_all, RLM_TENANTS='{"acme": {"toys": 9, "game_seconds": 9}}') == [3, 1.5, 9, 9]
    assert with_toys(WRONG, RLM_SANDBOX__TOYS="10", RLM_TENANTS__ACME__GAME_SECONDS="0").split("; ") == [
        "the configuration is wrong: tenants.acme.game_seconds: must be from 0.5 to 60 seconds, not '0' "
        "(from RLM_TENANTS__ACME__GAME_SECONDS)",
        "sandbox.toys: must be from 2 to 9 toys, not '10' (from RLM_SANDBOX__TOYS)",
    ]


def test_a_request_may_lower_a_new_limit_and_not_raise_it() -> None:
    five, one, eight, nothing, quick, slow = with_toys(ASKED)
    assert "toys=5" in five
    assert one == "limits.toys: must be from 2 to 7, not 1"
    assert eight == "limits.toys: must be from 2 to 7, not 8"
    assert "game_seconds=2.5" in nothing
    assert "game_seconds=1.5" in quick
    assert slow == "limits.game_time: must be from 0.5 to 2.5 s, not 2.501"


def test_a_new_limit_is_on_the_page() -> None:
    assert with_toys(PAGE) == [
        "| `game_seconds` | `RLM_GAME_SECONDS` | number | 2.5 | from 0.5 to 60 | seconds | Games of a run. |",
        "| `game_seconds` | `RLM_TENANTS__NAME__GAME_SECONDS` | number | the server's | from 0.5 to 60 | seconds "
        "| Games of a run. |",
        "| `toys` | `RLM_TENANTS__NAME__TOYS` | integer | the `sandbox`'s | from 2 to 9 | toys | Toys of one turn. |",
        "| `toys` | `RLM_SANDBOX__TOYS` | integer | 7 | from 2 to 9 | toys | Toys of one turn. |",
    ]
