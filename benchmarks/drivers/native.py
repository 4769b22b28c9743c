"""Drives CPython itself: what the same code takes without a sandbox."""

from __future__ import annotations

import platform

from benchmarks.drivers.serving import Measure, expect, seconds, serve

_programs: dict[str, dict[str, object]] = {}


def trivial() -> float:
    """Run a turn as a REPL would, and time it."""
    names: dict[str, object] = {}

    def turn() -> None:
        exec(compile("total = sum(range(10))", "<native>", "exec"), names)
        expect(repr(eval(compile("total", "<native>", "eval"), names)), "45")

    return seconds(turn)


def program(name: str, first: str, code: str) -> float:
    """Run a program, which `first` makes ready to run."""
    if name not in _programs:
        _programs[name] = {"__name__": "__main__"}
        exec(first, _programs[name])
    return seconds(lambda: exec(code, _programs[name]))


MEASURES: dict[str, Measure] = {"exec": trivial, "program": program}

if __name__ == "__main__":
    serve(f"CPython {platform.python_version()}", MEASURES)
