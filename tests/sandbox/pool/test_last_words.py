"""A worker cannot write to the server's terminal or log, and what it said when it failed can be found all the same."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from sandbox.pool import process as processes
from sandbox.pool.last_words import MAX_BYTES
from sandbox.pool.pool import WorkerPool
from sandbox.pool.process import WorkerLost, started
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_workers import LIMITS, children, descriptors, process_of, send, show

FORGED = "\x1b[2J\x1b]0;title\x07\r2026-01-01 00:00:00 ERROR root all is well\nsecond line \u2028 \ud83d"


def records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of workers, as it is written."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("sandbox.pool")]


async def test_what_a_worker_said_that_failed_to_start_is_one_escaped_line_of_the_log(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    program = f"import os\nos.write(2, {FORGED!r}.encode('utf-8', 'surrogatepass'))\nraise RuntimeError('it broke')"
    monkeypatch.setattr(processes, "_PROGRAM", program)
    before = children(), descriptors()
    with pytest.raises(WorkerLost, match="did not start"):
        await started(loaded)
    assert (children(), descriptors()) == before
    died, said = records(caplog)
    assert "died" in died
    assert "RuntimeError: it broke" in said
    assert "Traceback" in said
    assert said.isascii()
    assert said.isprintable()
    assert capfd.readouterr().err == ""


async def test_a_worker_that_writes_without_end_is_read_to_a_bound(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", "import os\nwhile True: os.write(2, b'\\0' * 65536)")
    with pytest.raises(WorkerLost, match="did not start"):
        await started(loaded)
    _, said = records(caplog)
    assert MAX_BYTES < len(said) < 4 * MAX_BYTES + 100
    assert capfd.readouterr().err == ""


async def test_a_live_worker_writes_nowhere_and_what_it_wrote_is_told_at_its_end(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    talking = f"import os\nos.write(2, b'first words\\n')\n{processes._PROGRAM.replace('; ', chr(10))}"
    monkeypatch.setattr(processes, "_PROGRAM", talking)
    before = children(), descriptors()
    pool = WorkerPool(loaded, sessions=2, spares=0)
    sessions = [await pool.create(owner, "core", LIMITS) for owner in "ab"]
    assert await show(sessions[0], "1") == "1"
    assert records(caplog) == []
    dead = process_of(sessions[0])._process
    send(sessions[0], signal.SIGKILL)
    assert await show(sessions[0], "2") == "2"
    assert [str(dead.pid) in line for line in records(caplog)] == [True, True]
    assert "died" in records(caplog)[0]
    assert r"'first words\n'" in records(caplog)[1]
    await asyncio.wait_for(pool.close(), 30)
    assert len(records(caplog)) == 4  # the two that were ended in order are not said to have died
    assert (children(), descriptors()) == before
    assert capfd.readouterr().err == ""


async def test_the_standard_error_of_a_worker_is_no_descriptor_of_the_servers(loaded: Loaded) -> None:
    pool = WorkerPool(loaded, sessions=1, spares=0)
    session = await pool.create("a", "core", LIMITS)
    try:
        theirs = os.stat(f"/proc/{process_of(session)._process.pid}/fd/2")
    except PermissionError:  # not dumpable, and we are not privileged
        assert os.geteuid() != 0
    else:
        own = os.stat("/proc/self/fd/2")
        assert (theirs.st_dev, theirs.st_ino) != (own.st_dev, own.st_ino)
    await asyncio.wait_for(pool.close(), 30)


async def test_a_worker_in_good_order_says_nothing(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool(loaded, sessions=1, spares=0)
    session = await pool.create("a", "core", LIMITS)
    for code in (
        "1 / 0",
        "import os; os._exit(1)",
        "import sys; print('x', file=sys.stderr)",
        "x = bytearray(1 << 30)",
    ):
        await session.execute(code, lambda _: asyncio.sleep(0), lambda *_: None)
    await asyncio.wait_for(pool.close(), 30)
    assert records(caplog) == []
