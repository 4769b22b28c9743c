"""Does what a Dockerfile says where no engine is: `unshare --mount python -m tests.containers.engine FILE FOLDER`.

Each stage is an overlay of this machine's root, so that its base image is this machine, with this Python. Then the
image is started as `docker run --read-only` would start it, with an empty volume, until its own check of its health
succeeds. What happened is printed as JSON. It needs root, and leaves nothing mounted: the mounts are its own
namespace's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEALTH_SECONDS = 300
_PASSED_ON = re.compile(r"PIP_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|https?_proxy|no_proxy", re.IGNORECASE)
"""What this machine needs to reach packages."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction's name, and the rest of its line."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


@dataclass
class Stage:
    """A stage: a root of its own, and what was said of how its commands run."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    user: int = 0
    folder: str = "/"
    volume: str = ""
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, folder: Path) -> Stage:
        """Begin one from this machine's root."""
        upper, work, root = (folder / name for name in ("upper", "work", "root"))
        for made in (upper, work, root):
            made.mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)], check=True)
        for name in ("proc", "dev", "sys"):
            subprocess.run(["mount", "--rbind", f"/{name}", str(root / name)], check=True)
        python = Path(sys.executable).resolve()
        for above in python.parents[:-1]:  # the image's Python is everyone's
            (root / above.relative_to("/")).chmod(0o755)
        return cls(root, {"PATH": f"{python.parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})

    def process(self, words: Sequence[str], **given: Any) -> subprocess.Popen[str]:
        """Start a command in it."""
        environment = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        as_user = (
            ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"] if self.user else []
        )
        inside = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        return subprocess.Popen(
            ["chroot", str(self.root), *as_user, "sh", "-c", inside],
            env={**environment, **self.variables},
            text=True,
            **given,
        )

    def run(self, words: Sequence[str]) -> int:
        """Run a command in it."""
        return self.process(words, stdout=sys.stderr).wait()


def copy(sources: Sequence[Path], target: Path, *, folder: bool) -> None:
    """Copy files, and the contents of folders, as COPY does."""
    for source in sources:
        if source.is_dir():
            shutil.copytree(
                source, target, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            into = target / source.name if folder else target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)


class Build:
    """The stages of a Dockerfile, as far as they are."""

    def __init__(self, context: Path, folder: Path) -> None:
        self._context, self._folder = context, folder
        self._stages: dict[str, Stage] = {}
        self.stage = Stage(Path())

    def do(self, name: str, rest: str) -> None:
        """Do one instruction."""
        print(f"• {name} {rest}", file=sys.stderr, flush=True)
        getattr(self, f"_{name.lower()}")(rest)

    def _from(self, rest: str) -> None:
        name = rest.split()[-1]
        self.stage = self._stages[name] = Stage.begun(self._folder / name)

    def _env(self, rest: str) -> None:
        known = self.stage.variables
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            known[name] = re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ""), value)

    def _run(self, rest: str) -> None:
        if status := self.stage.run(["sh", "-c", rest]):
            raise SystemExit(f"RUN {rest}: ended with {status}")

    def _workdir(self, rest: str) -> None:
        self.stage.folder = rest
        (self.stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *words, target = rest.split()
        stages = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
        base = self._stages[stages[0]].root if stages else self._context
        sources = [base / word.lstrip("/") for word in words if not word.startswith("--")]
        place = Path(self.stage.folder) / target
        copy(sources, self.stage.root / str(place).lstrip("/"), folder=target.endswith("/"))

    def _user(self, rest: str) -> None:
        self.stage.user = int(rest)

    def _volume(self, rest: str) -> None:
        self.stage.volume = rest

    def _expose(self, rest: str) -> None:
        """Nothing is to be done."""

    def _healthcheck(self, rest: str) -> None:
        self.stage.health = json.loads(rest.partition("CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.stage.entry = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.stage.command = json.loads(rest)


def started(stage: Stage, variables: Mapping[str, str], log: Path) -> dict[str, Any]:
    """Start the image with a root that is only read and an empty volume, until it is healthy; then stop it."""
    owner = f"uid={stage.user},gid={stage.user},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "volume", f"{stage.root}{stage.volume}"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmp", str(stage.root / "tmp")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(stage.root)], check=True)
    stage.variables.update(variables)
    cache = stage.variables["XDG_CACHE_HOME"]
    told: dict[str, Any] = {"writable": stage.run(["touch", f"{cache}/x"]) == 0, "healthy": False}
    with log.open("w") as written:
        server = stage.process([*stage.entry, *stage.command], stdout=written, stderr=subprocess.STDOUT)
        began = time.monotonic()
        while server.poll() is None and time.monotonic() - began < HEALTH_SECONDS and not told["healthy"]:
            told["healthy"] = stage.run(stage.health) == 0
        told["seconds"] = round(time.monotonic() - began, 1)
        server.send_signal(signal.SIGTERM)
        told["status"] = server.wait(60)
    told["log"] = log.read_text()
    return told


def main() -> None:
    """Build the image of a Dockerfile, start it, and print what happened."""
    dockerfile, folder = Path(sys.argv[1]), Path(sys.argv[2])
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    build = Build(dockerfile.parents[1], folder)
    for name, rest in instructions(dockerfile.read_text()):
        build.do(name, rest)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"RLM_LISTEN": f"0.0.0.0:{port}", "RLM_PLAINTEXT": "true"}
    print(json.dumps(started(build.stage, settings, folder / "log")))


if __name__ == "__main__":
    main()
