"""Runs one module of CPython's tests and tells the outcome of each. The same file runs in the guest and natively."""

import os
import shutil
import sys
import time
import traceback
import unittest

PASSED, FAILED, ERROR, SKIPPED = "passed", "failed", "error", "skipped"
loaded = {}
"""The tests of a module by their names, so that later turns of one session go on with the same objects."""


def run(module, done, seconds, tell):
    """Run the tests of `module` that are not in `done`, and begin no more after `seconds`; True when none is left.

    `tell(test, outcome, reason)` is called with the outcome "started" as a test begins, and again as it ends.
    """
    try:
        tests = loaded[module] = loaded.get(module) or load(module)
    except unittest.SkipTest as skip:
        tell(module, SKIPPED, str(skip))
        return True
    except BaseException as raised:
        tell(module, ERROR, describe(raised))
        return True
    done = frozenset(done)
    left = {name: test for name, test in tests.items() if name not in done}
    result = Outcomes(module, left, time.monotonic() + seconds, tell)
    unittest.TestSuite(left.values()).run(result)
    return not result.shouldStop


def load(module):
    """Return the tests of a module by name, in their order, set up as `python -m test` does without options."""
    from test import support

    support.use_resources = []
    tests = {}
    for test in flat(unittest.TestLoader().loadTestsFromName(f"test.{module}")):
        name = first = short(module, test)
        number = 2
        while name in tests:
            name, number = f"{first}#{number}", number + 1
        tests[name] = test
    return tests


def flat(suite):
    """Yield the tests of a suite and of all in it."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def short(module, test):
    """Return a test's id without what all tests of the module share."""
    name = test.id()
    for prefix in ("unittest.loader._FailedTest.", "unittest.loader.ModuleSkipped.", "test.", f"{module}."):
        name = name.removeprefix(prefix)
    return printable(name)


class Outcomes(unittest.TestResult):
    """Tells outcomes as they come, and clears away what a test that did not pass has left in the working folder."""

    def __init__(self, module, tests, until, tell):
        super().__init__()
        self.module, self.until, self.tell = module, until, tell
        self.names = {id(test): name for name, test in tests.items()}
        self.home = os.getcwd()
        self.running = None

    def startTest(self, test):
        super().startTest(test)
        self.running = self.names[id(test)]
        self.outcome, self.reason = PASSED, ""
        self.before = set(os.listdir(self.home))
        self.tell(self.running, "started", "")

    def stopTest(self, test):
        super().stopTest(test)
        if self.outcome in (FAILED, ERROR):
            self.clear()
        self.tell(self.running, self.outcome, self.reason)
        self.running = None
        if time.monotonic() > self.until:
            self.stop()

    def clear(self):
        os.chdir(self.home)
        for name in set(os.listdir(self.home)) - self.before:
            if os.path.isdir(name):
                shutil.rmtree(name, ignore_errors=True)
            else:
                os.unlink(name)

    def note(self, test, outcome, reason):
        reason = printable(reason)[:1000]
        if self.running is None:  # it is the set-up of a class or a module
            self.tell(short(self.module, test), outcome, reason)
        elif self.outcome in (PASSED, SKIPPED):  # else only the first failure of its subtests counts
            self.outcome, self.reason = outcome, reason

    def addError(self, test, error):
        self.note(test, ERROR, describe(error[1]))

    def addFailure(self, test, error):
        self.note(test, FAILED, describe(error[1]))

    def addSubTest(self, test, subtest, error):
        if error is not None:
            failed = issubclass(error[0], test.failureException)
            self.note(test, FAILED if failed else ERROR, f"{subtest._subDescription()} {describe(error[1])}")

    def addSkip(self, test, reason):
        self.note(test, SKIPPED, reason)

    def addUnexpectedSuccess(self, test):
        self.note(test, FAILED, "it was expected to fail")


def describe(raised):
    """Say what was raised, and where in the tests."""
    frames = [f for f in traceback.extract_tb(raised.__traceback__) if f"{os.sep}test{os.sep}" in f.filename]
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    first = (str(raised).splitlines() or [""])[0]
    return printable(f"{type(raised).__name__}: {first[:500]}{where}")


def printable(text):
    """Return text that can be encoded: lone surrogates written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    import json

    with open(sys.argv[2], "w", buffering=1) as told:
        run(sys.argv[1], [], float("inf"), lambda *outcome: print(json.dumps(outcome), file=told))
    os._exit(0)  # not waiting for threads that a test left
