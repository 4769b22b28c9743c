"""How long the sandbox takes, in this process: `python -m benchmarks.sandbox`.

Each figure is the median of at least 100 rounds; what is compared alternates within a round, so that a busy machine
slows both. The last line of stdout is JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from statistics import median

from sandbox.door import HostCall, Json
from sandbox.engine import THREAD_STACK_BYTES
from sandbox.image import Loaded, prepare, standard_specs
from sandbox.limits import Limits
from sandbox.session import Session
from sandbox.turn import Status, Turn

ROUNDS = 150
DOOR_CALLS = 1000
LIMITS = Limits(door_calls=1_000_000)
CODE = "total = sum(range(10))\ntotal"
DATA_CODE = "import numpy, pandas\nint(pandas.Series(numpy.arange(4)).sum())"
DOOR_CODE = f"import _door\nfor _ in range({DOOR_CALLS}): _door.call('ping')"


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def checked(turn: Turn) -> None:
    """Make sure that what is measured worked."""
    if turn.status is not Status.OK:
        raise RuntimeError(f"a turn failed: {turn.error}")


def fresh(loaded: Loaded, image: str, code: str) -> float:
    """Measure from nothing to a first result; closing is not counted."""
    started = time.perf_counter()
    session = Session(loaded.program, loaded.images[image], LIMITS)
    checked(session.execute(code))
    taken = time.perf_counter() - started
    session.close()
    return taken


def forked(session: Session) -> float:
    """Measure from a session with state to the fork's first result."""
    started = time.perf_counter()
    fork = session.fork()
    checked(fork.execute("len(state)"))
    taken = time.perf_counter() - started
    fork.close()
    return taken


def pong(_: HostCall) -> Future[Json]:
    """Answer the door at once."""
    future: Future[Json] = Future()
    future.set_result(None)
    return future


def native() -> None:
    """Run the same code in this CPython, as a REPL would."""
    names: dict[str, object] = {}
    exec(compile("total = sum(range(10))", "<native>", "exec"), names)
    repr(eval(compile("total", "<native>", "eval"), names))


def native_calls() -> None:
    """Do without a sandbox what the door does at least: write and read a request and its reply."""
    for _ in range(DOOR_CALLS):
        pong(HostCall(json.loads(json.dumps({"op": "ping"}))["op"], {}))
        json.loads(json.dumps({"ok": None}))


def measure(loaded: Loaded) -> dict[str, float]:
    """Take all figures: milliseconds (ms), microseconds (us), megabytes (mb)."""
    taken: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        taken.setdefault(name, []).append(value)

    warm, stateful = (Session(loaded.program, loaded.images["core"], LIMITS) for _ in range(2))
    checked(warm.execute(CODE))
    checked(stateful.execute("state = list(range(10_000))"))
    try:
        for round_ in range(ROUNDS):
            note("fresh_ms_p50", 1e3 * fresh(loaded, "core", CODE))
            note("exec_ms_p50", 1e3 * seconds(lambda: checked(warm.execute(CODE))))
            note("native_exec_ms_p50", 1e3 * seconds(native))
            note("fresh_data_ms_p50", 1e3 * fresh(loaded, "data", DATA_CODE))
            note("fork_ms_p50", 1e3 * forked(stateful))
            if round_ < 100:
                empty = seconds(lambda: checked(warm.execute("for _ in range(1000): pass", pong)))
                calls = seconds(lambda: checked(warm.execute(DOOR_CODE, pong)))
                note("door_us_p50", 1e6 * (calls - empty) / DOOR_CALLS)
                note("native_call_us_p50", 1e6 * seconds(native_calls) / DOOR_CALLS)
        result = {name: round(median(values), 4) for name, values in taken.items()}
        result["private_mb_per_session"] = round(private_mb(loaded), 3)
    finally:
        warm.close()
        stateful.close()
    return result


def private_mb(loaded: Loaded) -> float:
    """Return the memory that is a session's own after its first turn."""
    session = Session(loaded.program, loaded.images["core"], LIMITS)
    checked(session.execute(CODE))
    own = session.checkpoint.private_bytes / 1e6
    session.close()
    return own


def main() -> None:
    """Measure on a thread that is fit for guests, and print."""
    loaded = prepare(standard_specs({}), progress=lambda step: print(step, file=sys.stderr))
    result: dict[str, float] = {}
    threading.stack_size(THREAD_STACK_BYTES)
    thread = threading.Thread(target=lambda: result.update(measure(loaded)))
    thread.start()
    thread.join()
    loaded.program.close()
    if not result:
        sys.exit("the measurement failed")
    for name, value in result.items():
        print(f"{name:>26}  {value:10.3f}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
