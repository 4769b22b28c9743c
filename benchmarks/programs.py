"""Programs of PyPI `pyperformance`, made to run anywhere a Python runs code: in a guest, in a peer, and natively.

`pyperf`, which runs them by starting processes, is replaced by a stand-in that only collects what is to be timed.
"""

from __future__ import annotations

from pathlib import Path

PROGRAMS = {
    "comprehensions": 5000,
    "coroutines": 2,
    "deepcopy": 200,
    "deltablue": 20,
    "float": 1,
    "generators": 1,
    "go": 1,
    "hexiom": 10,
    "json_dumps": 10,
    "json_loads": 300,
    "logging": 500,
    "nbody": 1,
    "pidigits": 1,
    "raytrace": 1,
    "regex_effbot": 5,
    "richards": 2,
}
"""Programs that need nothing but the standard library, and how often each runs in one timing, so that a timing is long
against a turn."""

_LOADING = """
def load_program():
    import argparse, sys, time, types
    work = []

    class Runner:
        def __init__(self, **_):
            self.metadata, self.argparser, self.args = {{}}, argparse.ArgumentParser(), None

        def parse_args(self):
            self.args = self.argparser.parse_args([])
            return self.args

        def bench_func(self, name, function, *arguments, **_):
            work.append(lambda: [function(*arguments) for _ in range({loops})])

        def bench_time_func(self, name, function, *arguments, **_):
            work.append(lambda: function({loops}, *arguments))

    pyperf = types.ModuleType("pyperf")
    pyperf.Runner, pyperf.perf_counter = Runner, time.perf_counter
    sys.modules["pyperf"] = pyperf
    exec(compile({source!r}, "<program>", "exec"), {{"__name__": "__main__"}})
    assert work

    def run():
        for function in work:
            function()

    return run

run_program = load_program()
"""


def request(folder: Path, name: str) -> dict[str, str]:
    """Return what a driver is told of a program: its name, the code to run first, and the code to time.

    `folder` is pyperformance's folder of benchmarks.
    """
    source = (folder / f"bm_{name}" / "run_benchmark.py").read_text()
    return {"name": name, "first": _LOADING.format(source=source, loops=PROGRAMS[name]), "code": "run_program()"}
