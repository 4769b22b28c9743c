"""What docker/ says is good by the tools that know it, and does what it is for, as far as is seen without an engine.

Run by `make containers`, which needs root for the last test; no ordinary test run collects this module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = Path(os.environ["RLM_CACHE"]) / "containers" / "bin"


def told(*words: str | Path) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(words, cwd=ROOT / "docker", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    assert told(TOOLS / "hadolint", "Dockerfile") == ""


def test_the_manifests_are_what_kubernetes_takes() -> None:
    said = told(TOOLS / "kubernetes-validate", "--strict", "kubernetes.yaml")
    assert said.count("passed for resource") == 4


def test_compose_takes_the_file() -> None:
    read = "from compose_spec import PyCompose as C; c = C.from_yaml(open('compose.yaml').read()); c.validate()"
    told(TOOLS / "python", "-c", read)


def test_the_dockerfile_makes_an_image_that_serves_at_once_from_an_empty_volume(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-m", "tests.containers.engine", "docker/Dockerfile", tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    happened = json.loads(done.stdout.splitlines()[-1])
    assert not happened["writable"], "the root is only read"
    assert happened["healthy"], happened["log"]
    assert "compiling" not in happened["log"], "the guest was compiled when the image was built"
    assert "Traceback" not in happened["log"]
    assert happened["status"] == 0
