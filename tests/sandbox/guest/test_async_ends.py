"""Code that awaits, at its limits and at the end of a turn: whatever is left of a turn harms no later one."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from sandbox.door import Json
from sandbox.limits import MIB
from sandbox.turn import Status, Stop
from tests.sandbox.guest.test_async import ASK, Meeting, Never, echo, error, plain
from tests.sandbox.repl import Repl, Repls, answering


@pytest.fixture
def asking(repl: Repl) -> Repl:
    repl.show(ASK)
    return repl


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_more_requests_than_may_be_under_way_wait_their_turn(asking: Repl) -> None:
    meeting = Meeting(500, 500, 200)
    assert asking.show("len(await asyncio.gather(*map(ask_async, range(1200))))", meeting) == "1200"
    assert meeting.most == 500


def test_where_the_host_takes_fewer_the_rest_waits(start: Repls) -> None:
    repl = start(door_waiting=3)
    repl.show(ASK)
    meeting = Meeting(3, 3, 3, 1)
    assert repl.show("len(await asyncio.gather(*map(ask_async, range(10))))", meeting) == "10"
    assert meeting.most == 3


def test_requests_beyond_those_of_a_turn_are_errors(start: Repls) -> None:
    repl = start(door_calls=20)
    repl.show(ASK)
    code = "found = await asyncio.gather(*map(ask_async, range(40)), return_exceptions=True)"
    assert repl.run(code, echo).status is Status.ERROR  # waiting for the replies is a request as well
    assert repl.show("await ask_async('next turn')", echo) == "'next turn'"


def test_a_reply_too_large_for_a_frame_is_the_error_of_its_request(start: Repls) -> None:
    repl = start(memory_bytes=256 * MIB)
    repl.show(ASK)
    large = answering(lambda call: "x" * (33 * MIB if call.arguments["q"] == "large" else 9 * MIB))
    code = """
        found = await asyncio.gather(*map(ask_async, ['a', 'large', 'b', 'c', 'd']), return_exceptions=True)
        [len(each) if type(each) is str else each for each in found]"""
    shown = repl.show(plain(code), large)
    assert shown.count(str(9 * MIB)) == 4
    assert "LimitExceeded('the reply has" in shown


def test_waiting_for_a_reply_is_no_running(start: Repls) -> None:
    repl = start(turn_seconds=0.3)
    repl.show(ASK)
    later = Future[Json]()
    threading.Timer(0.8, later.set_result, ["there"]).start()
    assert repl.show("await asyncio.wait_for(ask_async('a'), 60)", lambda _: later) == "'there'"


@pytest.mark.parametrize("code", ["await asyncio.sleep(1e9)", "asyncio.run(asyncio.sleep(1e9))"])
def test_sleeping_is_running(start: Repls, code: str) -> None:
    repl = start(turn_seconds=0.3)
    repl.show(ASK + "x = 1")
    turn = repl.run("x = 2\n" + code)
    assert turn.error is not None
    assert turn.error.type is Stop.TURN_TIME
    assert repl.show("x, await ask_async('a')", echo) == "(1, 'a')"


@pytest.mark.parametrize("code", ["await ask_async('a')", "await asyncio.gather(ask_async('a'), asyncio.sleep(1e9))"])
def test_an_interrupt_ends_an_await(asking: Repl, code: str) -> None:
    never = Never()
    asking.show("x = 1")
    running = asking.begin(f"x = 2\ntry: {code}\nexcept BaseException: x = 3", never)
    assert never.enough.wait(20)
    asking.session.interrupt()
    turn = running.result(20)
    assert turn.error is not None
    assert turn.error.type is Stop.INTERRUPTED
    assert never.futures[0].cancelled()
    assert asking.show("x, await ask_async('a')", echo) == "(1, 'a')"


# ---- what is left of a turn ------------------------------------------------------------------------------------------

ENDED = "the turn that asked for this ended before the answer came"


def test_a_request_ends_with_its_turn(asking: Repl) -> None:
    never = Never(2)
    asking.show("tasks = [asyncio.create_task(ask_async(q)) for q in 'ab']\nawait asyncio.sleep(0)", never)
    assert len(never.futures) == 2
    assert all(future.cancelled() for future in never.futures)
    code = "await ask_async('c'), [str(e) for e in await asyncio.gather(*tasks, return_exceptions=True)]"
    assert asking.show(code, echo) == repr(("c", [ENDED, ENDED]))


def test_a_number_of_an_earlier_turn_means_nothing_in_the_next(asking: Repl) -> None:
    for q in "abc":
        asking.show(f"task = asyncio.create_task(ask_async({q!r}))\nawait asyncio.sleep(0)", Never())
        assert asking.show("await asyncio.gather(ask_async('x'), ask_async('y'))", Meeting(2)) == "['X', 'Y']"
    assert error(asking.run("await task")) == ("RuntimeError", ENDED)


LEFT = {
    "a loop left open": "loop = asyncio.new_event_loop()\nt = loop.create_task(ask_async('a'))\n"
    "loop.call_soon(loop.stop)\nloop.run_forever()",
    "a loop set and left": "loop = asyncio.new_event_loop()\nasyncio.set_event_loop(loop)",
    "a closed loop": "loop = asyncio.get_event_loop()\nloop.close()",
    "an exception": "t = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)\n1 / 0",
    "an interrupt": "t = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)\nraise KeyboardInterrupt",
    "an interrupt in asyncio.run": "async def f():\n    t = asyncio.create_task(ask_async('a'))\n"
    "    await asyncio.sleep(0)\n    raise KeyboardInterrupt\nasyncio.run(f())",
    "an exit in a task": "async def f(): raise SystemExit(3)\nawait asyncio.gather(f(), ask_async('a'))",
    "a task that will not end": "async def f():\n    while True:\n        try: await ask_async('a')\n"
    "        except asyncio.CancelledError: pass\nt = asyncio.create_task(f())\nawait asyncio.sleep(0)",
    "a running loop": "asyncio.run(asyncio.sleep(0))\nasyncio.events._set_running_loop(asyncio.get_event_loop())",
    "a coroutine never awaited": "ask_async('a')",
    "futures of a pool": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
    "fs = [pool.submit(ask, q) for q in 'abc']",
    "an exit": "t = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)\nimport os; os._exit(1)",
    "no modules": "import sys; sys.modules.clear()",
    "too deep": "async def f(): await f()\nawait f()",
    "no memory": "t = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)\nx = bytearray(1 << 30)",
}


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT.keys())
def test_what_a_turn_leaves_harms_no_later_one(asking: Repl, code: str) -> None:
    for _ in range(2):
        asking.run(code, Never())
        asking.show("import asyncio")
        assert asking.show("await asyncio.gather(*map(ask_async, 'abc'))", Meeting(3)) == "['A', 'B', 'C']"
        assert asking.show("asyncio.run(ask_async('x')) + ask('y')", echo) == "'xy'"
        assert asking.show("asyncio.get_event_loop().run_until_complete(asyncio.sleep(0.001, 'z'))") == "'z'"


def test_a_turn_that_awaits_nothing_leaves_nothing(asking: Repl) -> None:
    left = "len(__import__('_runner').leftovers)"
    assert asking.show(left) == "0"
    assert asking.show(f"await ask_async('a')\n{left}", echo) == "2"
    assert asking.show(left) == "0"


def test_a_fork_goes_on_by_itself(start: Repls, asking: Repl) -> None:
    asking.show("task = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)", Never())
    fork = start.fork(asking)
    for repl, word in ((asking, "one"), (fork, "other")):
        assert repl.show(f"await ask_async({word!r})", echo) == repr(word)
        assert error(repl.run("await task")) == ("RuntimeError", ENDED)


def test_a_turn_that_is_undone_takes_its_requests_with_it(asking: Repl) -> None:
    never = Never()
    asking.show("task = asyncio.create_task(asyncio.sleep(0.01, 'slept'))\nawait asyncio.sleep(0)")
    turn = asking.run(
        "other = asyncio.create_task(ask_async('a'))\nawait asyncio.sleep(0)\nimport os; os.abort()", never
    )
    assert turn.status is Status.ROLLED_BACK
    assert never.futures[0].cancelled()
    assert asking.show("await task, 'other' in globals(), await ask_async('b')", echo) == "('slept', False, 'b')"


# ---- hostile use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["-1", "1e300", "1e10", "float('nan')", "float('inf')", "'1'", "True", "[]", "{}"])
def test_a_wait_for_an_absurd_time_is_refused(repl: Repl, seconds: str) -> None:
    kind, message = error(repl.run(f"import _door\n_door.start('a')\n_door.wait({seconds})", Never()))
    assert kind == "ValueError"
    assert "seconds" in message or "malformed" in message


def test_thousands_of_requests_are_refused_beyond_the_limit(repl: Repl) -> None:
    code = """
        import _door
        started = 0
        try:
            while True: started += bool(_door.start('a'))
        except _door.LimitExceeded as error: print(started, error)
        try: _door.call('a')
        except _door.LimitExceeded as error: print(error)"""
    never = Never()
    limit = "1000 requests under way at once is the limit"
    assert repl.show(plain(code), never) == f"1000 {limit}\n{limit}"
    assert all(future.cancelled() for future in never.futures)


def test_a_wait_with_nothing_under_way_ends_by_its_time_or_the_turns(start: Repls) -> None:
    repl = start(turn_seconds=0.3)
    assert repl.show("import _door\n_door.wait(0.01), _door.wait(0)") == "([], [])"
    for seconds in ("", "1e9"):
        turn = repl.run(f"import _door\n_door.wait({seconds})")
        assert turn.error is not None
        assert turn.error.type is Stop.TURN_TIME


def test_forged_numbers_reach_nothing(asking: Repl) -> None:
    code = """
        import _door
        said = lambda reply: print('reply', reply)
        _requests.under_way.update({n: _requests.Begun(None, said) for n in (0, -1, 2, 10**30, 'x')})
        for forged in ({'op': 'sandbox.wait', 'number': 1}, {'op': 'ask', 'q': 'b', 'later': 1}):
            print(_door.call(**forged) if 'number' not in forged else 'skipped')
        await ask_async('c')"""
    assert asking.show(plain(code), echo) == "skipped\nb\n'c'"


def test_a_guest_that_rewrites_its_loop_harms_only_itself(asking: Repl) -> None:
    asking.run("_loop.Loop._run_once = _requests.wait = None\nawait ask_async('a')", echo)
    asking.run(
        "_requests.arrived.append((1, 2)); _requests.held = 3\n__import__('_runner').leftovers.append(exit)", echo
    )
    assert asking.show("1 + 1") == "2"
