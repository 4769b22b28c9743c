"""Runs CPython's own tests inside the sandbox; fails where they differ from native CPython otherwise than is known."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection

from sandbox.vm.image import prepare, standard_specs
from tests.conformance import report
from tests.conformance.cpython import CPython
from tests.conformance.expected import DATA, Expected
from tests.conformance.inside import ModuleRun, image_with_tests
from tests.conformance.outcome import Outcome


def main() -> int:
    """Run what the arguments name, print what came of it, and return the command's exit status."""
    expected = Expected.load()
    parser = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as test_re; without any, all are run")
    parser.add_argument("--native", action="store_true", help="run the tests in their own CPython too (5 minutes more)")
    parser.add_argument("--write", action="store_true", help=f"--native, and write the tables into {report.PAGE.name}")
    parser.add_argument("--prune", action="store_true", help=f"take what no longer differs out of {DATA.name}")
    arguments = parser.parse_args()
    modules = arguments.modules or expected.modules
    if arguments.write and arguments.modules:
        parser.error("the page's tables are of all modules")

    cpython = CPython.fetched()
    inside = run_inside(cpython, modules)
    native = run_natively(cpython, modules) if arguments.native or arguments.write else []
    print(f"\n{report.tables(expected, inside, native)}\n")
    if arguments.write:
        report.write(report.tables(expected, inside, native))
    if arguments.prune:
        prune(expected.mended(modules, inside))
    problems = expected.complaints(modules, inside)
    if native:
        problems += expected.native_complaints(inside, native)
    print("\n".join(problems) or "all as expected")
    return 1 if problems else 0


def run_inside(cpython: CPython, modules: list[str]) -> list[Outcome]:
    """Run the modules' tests in the sandbox, a line for each as it ends."""
    loaded = prepare(standard_specs({}), progress=print)
    image = image_with_tests(loaded, cpython.tests())
    found = []
    for module in modules:
        outcomes = ModuleRun(loaded, image, module).outcomes()
        print(report.line(module, outcomes), flush=True)
        found += outcomes
    loaded.program.close()
    return found


def run_natively(cpython: CPython, modules: list[str]) -> list[Outcome]:
    """Run the modules' tests in their own CPython, a line for each as it ends."""
    found = []
    for module in modules:
        outcomes = cpython.run(module)
        print(report.line(f"{module} (native)", outcomes), flush=True)
        found += outcomes
    return found


def prune(mended: Collection[tuple[str, str]]) -> None:
    """Take tests out of the list, where each has a line of its own under its module's."""
    module, kept = "", []
    for line in DATA.read_text().splitlines(keepends=True):
        if begins := re.match(r"(\w+) = \[$", line):
            module = begins[1]
        if (module, line.strip().rstrip(",").strip('"')) not in mended:
            kept.append(line)
    DATA.write_text(re.sub(r"^\w+ = \[\n\]\n", "", "".join(kept), flags=re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
