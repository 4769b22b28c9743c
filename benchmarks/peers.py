"""The peers, each in a pinned environment that scripts/peers makes outside the repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestant import ROOT, Contestant
from benchmarks.progress import Progress

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlm-server" / "peers"
PROGRAMS = FOLDER / "programs" / "pyperformance" / "data-files" / "benchmarks"
PEERS = {
    "eryx": Contestant("eryx", (f"{FOLDER}/eryx/bin/python", "-m", "benchmarks.drivers.eryx"), 900),
    "monty": Contestant("monty", (f"{FOLDER}/monty/bin/python", "-m", "benchmarks.drivers.monty"), 50),
    "pyodide": Contestant(
        "pyodide",
        (
            f"{FOLDER}/pyodide/bin/deno", "run", "--quiet", "--no-remote", f"--allow-read={FOLDER}/pyodide",
            "benchmarks/drivers/pyodide.mjs", f"{FOLDER}/pyodide/node_modules/pyodide",
        ),
        4,
    ),
}  # fmt: skip


def prepared(names: Sequence[str], progress: Progress) -> list[Contestant]:
    """Return the peers of these names whose environment could be made. Say why any other is left out."""
    return [PEERS[name] for name in names if environment(name, progress)]


def programs(progress: Progress) -> Path | None:
    """Return pyperformance's folder of benchmarks, if it can be had."""
    return PROGRAMS if environment("programs", progress) else None


def environment(name: str, progress: Progress) -> bool:
    """Make an environment where it is missing; say why where that can't be done."""
    progress(f"making sure of the environment of {name}")
    made = subprocess.run([ROOT / "scripts" / "peers", name], stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or ["scripts/peers failed"])[-1]
        progress(f"{name} is left out: {reason}")
    return made.returncode == 0
