"""Which differences from native CPython are known, each under its cause, and whether a run shows just those."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.outcome import Outcome, Result

DATA = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why tests differ: `tests` run and do not pass; others skip themselves and say what matches `skips`."""

    name: str
    why: str
    tests: Mapping[str, Sequence[str]]
    skips: re.Pattern[str] | None

    def explains(self, outcome: Outcome) -> bool:
        """Say whether this is why the outcome is what it is."""
        if outcome.result is Result.SKIPPED:
            return self.skips is not None and self.skips.search(outcome.reason) is not None
        return outcome.test in self.tests.get(outcome.module, ())


@dataclass(frozen=True, slots=True)
class Expected:
    """The modules to run, by area, and the differences they show; `skipped` is how many tests of a module skip."""

    areas: Mapping[str, Sequence[str]]
    quick: Sequence[str]
    skipped: Mapping[str, int]
    causes: Sequence[Cause]

    @classmethod
    def load(cls, path: Path = DATA) -> Expected:
        """Read it from the repository."""
        data = tomllib.loads(path.read_text())
        causes = [
            Cause(
                cause["name"],
                cause["why"],
                cause.get("tests", {}),
                re.compile("|".join(cause["skips"])) if "skips" in cause else None,
            )
            for cause in data["cause"]
        ]
        return cls(data["areas"], data["quick"], data["skipped"], causes)

    @property
    def modules(self) -> list[str]:
        """All modules, in the order of their areas."""
        return [module for modules in self.areas.values() for module in modules]

    def cause_of(self, outcome: Outcome) -> Cause | None:
        """Return why a test did not pass, where that is known."""
        return next((cause for cause in self.causes if cause.explains(outcome)), None)

    def complaints(self, modules: Collection[str], outcomes: Sequence[Outcome]) -> list[str]:
        """Say what is otherwise than expected in a run of `modules`."""
        differing = [outcome for outcome in outcomes if outcome.result not in (Result.PASSED, Result.SKIPPED)]
        found = [f"not expected: {outcome}" for outcome in differing if self.cause_of(outcome) is None]
        found += [
            f"expected to differ, but does not: {module} {test}" for module, test in self.mended(modules, outcomes)
        ]
        skipped = Counter(outcome.module for outcome in outcomes if outcome.result is Result.SKIPPED)
        found += [
            f"{module}: {skipped[module]} tests are skipped, {self.skipped.get(module, 0)} were expected"
            for module in modules
            if skipped[module] != self.skipped.get(module, 0)
        ]
        return found

    def mended(self, modules: Collection[str], outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
        """Return the tests of `modules` that are listed as differing and do not."""
        differing = {(o.module, o.test) for o in outcomes if o.result not in (Result.PASSED, Result.SKIPPED)}
        listed = [(m, test) for cause in self.causes for m, tests in cause.tests.items() for test in tests]
        return [(module, test) for module, test in listed if module in modules and (module, test) not in differing]

    def native_complaints(self, inside: Sequence[Outcome], native: Sequence[Outcome]) -> list[str]:
        """Say which listed differences are none, and which skipped tests are ones and not listed."""
        natively = {(outcome.module, outcome.test): outcome for outcome in native}
        found = []
        for outcome in inside:
            twin = natively.get((outcome.module, outcome.test))
            if twin is None or outcome.result is Result.PASSED:
                continue
            if outcome.result is Result.SKIPPED:
                if twin.result is Result.PASSED and self.cause_of(outcome) is None:
                    found.append(f"skipped only inside, for no cause listed: {outcome}")
            elif twin.result in (Result.FAILED, Result.ERROR):
                found.append(f"no difference, for natively it does not pass: {twin}")
        return found
