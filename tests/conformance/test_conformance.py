"""A quick part of CPython's own tests inside the sandbox; `make conformance` runs all of them."""

from __future__ import annotations

from collections import Counter

import pytest

from sandbox.vm.image import Loaded
from sandbox.vm.instance import Image
from tests.conformance.cpython import CPython
from tests.conformance.expected import Expected
from tests.conformance.inside import ModuleRun, image_with_tests
from tests.conformance.outcome import Result

EXPECTED = Expected.load()
HARSH = {
    "support/__init__.py": b"",
    "test_harsh.py": b"""
import os, unittest

class Harsh(unittest.TestCase):
    def test_1_passes(self): pass
    def test_2_ends_the_process(self): os._exit(3)
    def test_3_raises(self): 1 / 0
    def test_4_fails_in_a_subtest(self):
        for i in range(3):
            with self.subTest(i=i): self.assertLess(i, 1)
    def test_5_cannot_run_here(self): self.skipTest("no reason")
    def test_6_passes(self): pass
""",
}


@pytest.fixture(scope="module")
def image(loaded: Loaded) -> Image:
    return image_with_tests(loaded, CPython.fetched().tests())


@pytest.mark.parametrize("module", EXPECTED.quick)
def test_a_module_of_the_library_differs_from_native_only_as_listed(module: str, loaded: Loaded, image: Image) -> None:
    outcomes = ModuleRun(loaded, image, module).outcomes()
    assert any(outcome.result is Result.PASSED for outcome in outcomes)
    assert EXPECTED.complaints([module], outcomes) == []


def test_what_stops_a_turn_is_recorded_and_the_other_tests_are_run(loaded: Loaded) -> None:
    outcomes = ModuleRun(loaded, image_with_tests(loaded, HARSH), "test_harsh").outcomes()
    results = {outcome.test.split("_")[1]: outcome.result for outcome in outcomes}
    assert results == {
        "1": Result.PASSED,
        "2": Result.STOPPED,
        "3": Result.ERROR,
        "4": Result.FAILED,
        "5": Result.SKIPPED,
        "6": Result.PASSED,
    }
    unlisted = EXPECTED.complaints(["test_harsh"], outcomes)
    assert len(unlisted) == 4, unlisted
    assert "EXIT: the code ended its process with status 3" in unlisted[0]


def test_every_listed_difference_is_of_a_module_that_is_run_and_stands_once() -> None:
    listed = [(module, test) for cause in EXPECTED.causes for module, tests in cause.tests.items() for test in tests]
    assert [each for each, times in Counter(listed).items() if times > 1] == []
    assert {module for module, _ in listed} | {*EXPECTED.skipped, *EXPECTED.quick} <= {*EXPECTED.modules}
    assert [module for module, times in Counter(EXPECTED.modules).items() if times > 1] == []
