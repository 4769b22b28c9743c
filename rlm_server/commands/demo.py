"""The main job, shown: a question over a large real text, through a server, its sandbox, its broker and a client.

`python -m rlm_server.commands.demo`. The text is the Python sources installed here, or the file that DEMO_TEXT names.
With the key of a provider set a real model answers, otherwise the scripted stand-in does, and says so.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from rlm_server.broker.providers.registry import with_keys
from rlm_server.broker.providers.scripted_models.census import QUESTION, declares_exception

MIN_CHARACTERS = 20_000_000
BUDGET_USD = "2.00"

_HEADER = re.compile(r"===== FILE: ([^/\n]+)/.* =====")


def main() -> int:
    """Run the demonstration; return 0 where the answer is right."""
    with tempfile.TemporaryDirectory(prefix="rlm-demo-") as folder:
        path = _text(Path(folder))
        characters = len(path.read_text(encoding="utf-8"))
        _say(f"The text: {path.name}, {characters:,} characters, none of which a model is sent unasked.")
        _say(f"The question:\n{QUESTION}\n")
        with _server(Path(folder) / "data") as (address, key, models):
            _say(models)
            if "scripted" in models:
                _say("No key is set, so the SCRIPTED stand-in plays: a program, not a model; its prices are simulated.")
                keys = " or ".join(spec.key_variable for spec in with_keys())
                _say(f"Set {keys} to have a real model answer.\n")
            answer = _ask(path, address, key)
        expected = _count(path)
    _say(f"\nAnswer:\n{answer}\n\nCounted independently, without any model:\n{expected}")
    right = answer.split() == expected.split()
    _say("\nThe answer is right." if right else "\nThe answer is NOT what was counted.")
    return 0 if right else 1


def _say(text: str) -> None:
    print(text, flush=True)


def _text(folder: Path) -> Path:
    """Return the text to ask about: DEMO_TEXT, or the sources of the standard library and the installed packages."""
    named = os.environ.get("DEMO_TEXT", "")
    if named:
        return Path(named)
    path = folder / "python-sources.txt"
    written = 0
    with path.open("w", encoding="utf-8", newline="") as text:
        for name, source in _sources():
            written += text.write(f"===== FILE: {name} =====\n{source}\n")
            if written > 1.2 * MIN_CHARACTERS:
                break
    if written < MIN_CHARACTERS:
        raise click.ClickException(f"only {written:,} characters of Python source are installed; set DEMO_TEXT")
    return path


def _sources() -> Iterator[tuple[str, str]]:
    """Yield every Python file as (package/path, source): those of installed packages, then the standard library's."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    for root in (packages, library):
        for file in sorted(root.rglob("*.py")):
            relative = file.relative_to(root)
            if root is library and {"site-packages", "dist-packages"} & set(relative.parts):
                continue
            try:
                source = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            package = relative.parts[0].removesuffix(".py")
            yield f"{package}/{relative.as_posix()}", source


def _count(path: Path) -> str:
    """Answer the question by reading the text line by line."""
    counts: Counter[str] = Counter()
    package = ""
    for line in path.read_text(encoding="utf-8").split("\n"):
        header = _HEADER.fullmatch(line)
        if header:
            package = header[1]
        elif package and line.lstrip(" ").startswith("class ") and declares_exception(line):
            counts[package] += 1
    best = sorted(counts, key=lambda name: (-counts[name], name))[:5]
    return "\n".join(f"{name}: {counts[name]}" for name in best)


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run `rlm-server serve` on a free port of loopback; yield its address, its key and what it says of its models."""
    command = [
        sys.executable,
        "-m",
        "rlm_server.commands.cli",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(folder),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            if server.stdout is None:
                raise click.ClickException("the server has no output")
            output = dict(
                line.strip().split(maxsplit=1) for line in (server.stdout.readline(), server.stdout.readline())
            )
            if "serving" not in output:
                raise click.ClickException("the server did not start; what it said is above")
            address = output["serving"].removeprefix("on ")
            yield address, (folder / "development-key").read_text().strip(), f"Models: {output['models:']}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def _ask(path: Path, address: str, key: str) -> str:
    """Ask with the `rlm` command. It shows the run as it happens; only the answer goes to its stdout."""
    command = [sys.executable, "-m", "rlm_client.cli", "run", "--context", str(path), "--budget", BUDGET_USD, QUESTION]
    environment = {**os.environ, "RLM_SERVER": address, "RLM_API_KEY": key}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise click.ClickException(f"rlm run ended with status {done.returncode}")
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except click.ClickException as error:
        error.show()
        sys.exit(1)
