"""No engine builds the container here, so what can be checked without one is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from rlm_server.api.certificates import refuse_plaintext
from rlm_server.api.port import CLOSING_SECONDS, LAST_SECONDS
from rlm_server.commands.cli import main
from rlm_server.config.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def copied() -> list[str]:
    """Return the paths that are copied from the repository."""
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    return [source for line in lines if "--from=" not in line for source in line.split()[:-1] if source[:2] != "--"]


def test_every_path_it_copies_exists() -> None:
    assert copied()
    assert not [path for path in copied() if not (ROOT / path).exists()]


def test_every_path_it_copies_is_let_through_to_the_builder() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert {path.split("/")[0] for path in copied()} == let_through


def test_it_does_not_run_as_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] not in {"root", "0"}


def variables() -> dict[str, str]:
    """Return the variables that the image sets."""
    lines = re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def test_an_empty_volume_hides_nothing_of_the_compiled_guest() -> None:
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    cache = Path(variables()["XDG_CACHE_HOME"])
    assert not cache.is_relative_to(volume)
    assert Path(variables()["HOME"]).is_relative_to(volume)
    assert f"install -d -o 10001 -g 10001 -m 0700 {cache}" in DOCKERFILE
    assert DOCKERFILE.index("ENV XDG_CACHE_HOME") < DOCKERFILE.index("RUN rlm-server image build")


def test_its_commands_exist_and_go_by_the_same_settings() -> None:
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    (served,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(health) == ["rlm-server", "health"]
    assert json.loads(served) == ["serve"], "an option would be unknown to the check of health"
    assert {"health", "serve"} <= set(main.commands)
    assert variables()["RLM_LISTEN"] == "0.0.0.0:7400"


COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
MANIFESTS = {
    one["kind"]: one for one in yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text())
}  # one of each


def loaded(monkeypatch: pytest.MonkeyPatch, given: Mapping[str, str]) -> Settings:
    """The settings that these variables give, beside the image's own."""
    for name, value in {**variables(), **given}.items():
        if name.startswith("RLM_"):
            monkeypatch.setenv(name, value)
    return Settings.load()


def longest_stop(settings: Settings) -> float:
    return settings.drain_seconds + settings.grace_seconds + LAST_SECONDS + CLOSING_SECONDS


def test_compose_gives_settings_that_are_taken_and_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    server, postgres = COMPOSE["services"]["server"], COMPOSE["services"]["postgres"]
    given = {name: re.sub(r"\$\{[^}]*\}", "word", value) for name, value in server["environment"].items()}
    settings = loaded(monkeypatch, given)
    refuse_plaintext(settings)
    assert float(server["stop_grace_period"].removesuffix("s")) > longest_stop(settings)
    assert (server["read_only"], server["cap_drop"]) == (True, ["ALL"])
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert {mount.split(":")[0] for one in (server, postgres) for mount in one["volumes"]} == set(COMPOSE["volumes"])
    assert settings.database_url.get_secret_value() == "postgresql://rlm:word@postgres/rlm"


def test_the_manifests_belong_together_and_give_the_server_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, label = MANIFESTS["Deployment"]["spec"], {"app.kubernetes.io/name": "rlm-server"}
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["template"]["metadata"]["labels"] == deployment["selector"]["matchLabels"] == label
    assert MANIFESTS["Service"]["spec"]["selector"] == label
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == label
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    settings = loaded(monkeypatch, {one["name"]: one["value"] for one in container["env"] if "value" in one})
    refuse_plaintext(settings)
    assert pod["terminationGracePeriodSeconds"] > longest_stop(settings)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    told = (settings.listen, settings.health_listen, settings.metrics_listen)
    assert list(ports.values()) == [int(address.rpartition(":")[2]) for address in told]
    assert container["readinessProbe"]["grpc"]["port"] == ports["health"]
    assert {container[probe]["tcpSocket"]["port"] for probe in ("startupProbe", "livenessProbe")} <= set(ports)
    assert {port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]} <= set(ports)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    for file in (settings.tls_cert, settings.tls_key):
        assert file is not None
        assert str(file.parent) in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_manifests_take_no_rights_that_the_server_does_not_need() -> None:
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (int(user), True)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    assert volume in {mount["mountPath"] for mount in container["volumeMounts"]}
