"""Runs CPython's tests inside the sandbox: a session for each module, its tests in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sandbox.door import HostCall
from sandbox.limits import Limits
from sandbox.turn import Status, Turn
from sandbox.vm.files import Inode
from sandbox.vm.image import Loaded
from sandbox.vm.instance import Image
from sandbox.vm.session import Session
from tests.conformance.cpython import SUITE
from tests.conformance.outcome import Outcome, Result
from tests.sandbox.repl import Repl, answering

FOLDER = "/usr/local/lib/conformance"
FIRST_INODE = 1 << 32
"""Above all that the image and its sessions have."""
BATCH_SECONDS = 20
LIMITS = Limits(turn_seconds=BATCH_SECONDS + 30, door_calls=1_000_000)
"""A session's own, but for the time of a turn, of which a test that hangs gets at least 30 seconds."""
FINISHED = "finished"
PRELUDE = f"""
import os, sys
os.chdir('/tmp')
sys.path.insert(0, {FOLDER!r})
import _door
def _tell(test, result, reason):
    _door.call('conformance.tell', test=test, result=result, reason=reason)
"""


def image_with_tests(loaded: Loaded, tests: Mapping[str, bytes]) -> Image:
    """Return the core image with the files of a package `test` among its read-only ones."""
    image = loaded.images["core"]
    contents = {f"{FOLDER}/test/{path}": data for path, data in tests.items()}
    contents[f"{FOLDER}/suite.py"] = SUITE.read_bytes()
    contents[f"{FOLDER}/_testlimitedcapi.py"] = b""  # without it the whole of test_bytes skips itself
    files = {path: Inode(FIRST_INODE + i, data) for i, (path, data) in enumerate(contents.items())}
    return replace(image, files=replace(image.files, read_only={**image.files.read_only, **files}))


class ModuleRun:
    """One module's tests, run to their end whatever some of them do."""

    def __init__(self, loaded: Loaded, image: Image, module: str) -> None:
        self._module = module
        self._outcomes: dict[str, Outcome] = {}
        self._running: str | None = None
        self._finished = False
        self._session = Session(loaded.program, image, LIMITS)
        self._repl = Repl(self._session)

    def outcomes(self) -> list[Outcome]:
        """Run all and return what became of each."""
        try:
            self._repl.show(PRELUDE)
            while not self._batch():
                pass
        finally:
            self._session.close()
        return list(self._outcomes.values())

    def _batch(self) -> bool:
        """Run tests until one stops the turn or it has had its time; True when none is left."""
        before = len(self._outcomes)
        call = f"suite.run({self._module!r}, {list(self._outcomes)!r}, {BATCH_SECONDS}, _tell)"
        turn = self._repl.run(f"import suite\n{call} and _tell('', {FINISHED!r}, '')", answering(self._told))
        if turn.status is not Status.OK:
            self._stopped(turn)
        return self._finished or len(self._outcomes) == before  # that again and again would come to nothing

    def _told(self, call: HostCall) -> None:
        test, result, reason = call.text("test"), call.text("result"), call.text("reason")
        if result == FINISHED:
            self._finished = True
            return
        self._running = test if result == "started" else None
        if result != "started":
            self._outcomes[test] = Outcome(self._module, test, Result(result), reason)

    def _stopped(self, turn: Turn) -> None:
        assert turn.error is not None
        test, self._running = self._running or self._module, None
        reason = f"{turn.error.type}: {turn.error.message}"
        self._outcomes[test] = Outcome(self._module, test, Result.STOPPED, reason)
