"""Code that awaits: many requests are under way at once, and whatever is left of a turn harms no later one."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future

import pytest

from sandbox.door import DoorRefusal, HostCall, Json
from sandbox.limits import MIB, Limits
from sandbox.pool.pool import WorkerPool
from sandbox.turn import Status, Turn
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_pool import ignore
from tests.sandbox.repl import Repl, answering

ASK = """
import asyncio, _loop, _requests
@_requests.asking
def ask(q):
    return _requests.Request('ask', str, q=q)
ask_async = _loop.awaitable(ask)
"""


class Meeting:
    """A handler that answers no request before so many are there, and then the last to come first."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = list(sizes)
        self.there: list[tuple[HostCall, Future[Json]]] = []
        self.most = 0

    def __call__(self, call: HostCall) -> Future[Json]:
        future = Future[Json]()
        self.there.append((call, future))
        self.most = max(self.most, len(self.there))
        if self.sizes and len(self.there) == self.sizes[0]:
            self.sizes.pop(0)
            self.answer()
        return future

    def answer(self) -> None:
        while self.there:
            call, future = self.there.pop()
            future.set_result(str(call.arguments["q"]).upper())


class Never:
    """A handler that never answers, and says when it was asked so often."""

    def __init__(self, asked: int = 1) -> None:
        self.futures: list[Future[Json]] = []
        self.enough = threading.Event()
        self._asked = asked

    def __call__(self, call: HostCall) -> Future[Json]:
        self.futures.append(Future())
        if len(self.futures) == self._asked:
            self.enough.set()
        return self.futures[-1]


echo = answering(lambda call: call.arguments["q"])


@pytest.fixture
def asking(repl: Repl) -> Repl:
    repl.show(ASK)
    return repl


def error(turn: Turn) -> tuple[str, str]:
    assert turn.status is Status.ERROR, turn
    assert turn.error is not None
    return turn.error.type, turn.error.message


# ---- what runs in parallel -------------------------------------------------------------------------------------------

IN_PARALLEL = {
    "gather": "await asyncio.gather(*map(ask_async, 'abcde'))",
    "gather in asyncio.run": """
        async def main(): return await asyncio.gather(*map(ask_async, 'abcde'))
        asyncio.run(main())""",
    "a task group": """
        async with asyncio.TaskGroup() as group: tasks = [group.create_task(ask_async(q)) for q in 'abcde']
        [task.result() for task in tasks]""",
    "tasks": """
        tasks = [asyncio.create_task(ask_async(q)) for q in 'abcde']
        [await task for task in tasks]""",
    "as completed": "sorted([await each for each in asyncio.as_completed([ask_async(q) for q in 'abcde'])])",
    "wait": """
        done, _ = await asyncio.wait([asyncio.create_task(ask_async(q)) for q in 'abcde'])
        sorted(task.result() for task in done)""",
    "wait for": "await asyncio.gather(*(asyncio.wait_for(ask_async(q), 60) for q in 'abcde'))",
    "a timeout": """
        async with asyncio.timeout(60): found = await asyncio.gather(*map(ask_async, 'abcde'))
        found""",
    "a queue": """
        queue, found = asyncio.Queue(), []
        async def work():
            while True:
                found.append(await ask_async(await queue.get()))
                queue.task_done()
        workers = [asyncio.create_task(work()) for _ in range(5)]
        for q in 'abcde': queue.put_nowait(q)
        await queue.join()
        for worker in workers: worker.cancel()
        sorted(found)""",
    "to_thread": "await asyncio.gather(*(asyncio.to_thread(ask, q) for q in 'abcde'))",
    "an executor": """
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, ask, q) for q in 'abcde'))""",
    "a loop": """
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(ask_async(q)) for q in 'abcde']
        loop.run_until_complete(asyncio.wait(tasks))
        loop.close()
        [task.result() for task in tasks]""",
    "an asynchronous generator": """
        async def found():
            for task in [asyncio.create_task(ask_async(q)) for q in 'abcde']: yield await task
        [each async for each in found()]""",
    "a bare coroutine": "await asyncio.gather(ask_async('a'), asyncio.gather(*map(ask_async, 'bcd')), ask_async('e'))",
}


def plain(code: str) -> str:
    return code.replace("\n        ", "\n")


@pytest.mark.parametrize("code", IN_PARALLEL.values(), ids=IN_PARALLEL.keys())
def test_requests_are_under_way_at_once(asking: Repl, code: str) -> None:
    shown = asking.show(plain(code), Meeting(5))
    expected = "['A', ['B', 'C', 'D'], 'E']" if "'bcd'" in code else "['A', 'B', 'C', 'D', 'E']"
    assert shown == expected


def test_twenty_are_under_way_at_once(asking: Repl) -> None:
    meeting = Meeting(20)
    assert asking.show("len(await asyncio.gather(*map(ask_async, range(20))))", meeting) == "20"
    assert meeting.most == 20


def test_every_request_gets_its_own_reply_in_whatever_order_they_come(asking: Repl) -> None:
    there: list[tuple[HostCall, Future[Json]]] = []

    def handler(call: HostCall) -> Future[Json]:
        reply: Future[Json] = Future()
        there.append((call, reply))
        if len(there) == 100:
            random.shuffle(there)
            for asked, future in there:
                future.set_result(asked.arguments["q"])
        return reply

    assert asking.show("[int(n) for n in await asyncio.gather(*map(ask_async, range(100)))] == [*range(100)]", handler)
    assert len(there) == 100


def test_a_semaphore_bounds_them(asking: Repl) -> None:
    code = """
        few = asyncio.Semaphore(3)
        async def one(q):
            async with few: return await ask_async(q)
        len(await asyncio.gather(*map(one, range(9))))"""
    meeting = Meeting(3, 3, 3)
    for _ in range(2):  # the semaphore belongs to the loop in which turns await
        assert asking.show(plain(code), meeting) == "9"
        code, meeting.sizes = "len(await asyncio.gather(*map(one, range(9))))", [3, 3, 3]
    assert meeting.most == 3


def test_a_plain_request_among_them_waits_for_its_own_reply(asking: Repl) -> None:
    meeting = Meeting(3)
    code = """
        tasks = [asyncio.create_task(ask_async(q)) for q in 'ab']
        await asyncio.sleep(0)
        ask('c'), [await task for task in tasks]"""
    assert asking.show(plain(code), meeting) == "('C', ['A', 'B'])"


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "asyncio.run(ask_async('x')) + asyncio.run(ask_async('y'))",
        "asyncio.get_event_loop().run_until_complete(ask_async('xy'))",
        "loop = asyncio.get_event_loop_policy().new_event_loop()\nloop.run_until_complete(ask_async('xy'))",
        "loop = asyncio.new_event_loop()\nasyncio.set_event_loop(loop)\n"
        "r = asyncio.get_event_loop().run_until_complete(ask_async('xy'))\nloop.close()\nr",
        "with asyncio.Runner() as runner: r = runner.run(ask_async('x')) + runner.run(ask_async('y'))\nr",
        "loop = asyncio.EventLoop()\ntask = loop.create_task(ask_async('xy'))\n"
        "task.add_done_callback(lambda _: loop.stop())\nloop.run_forever()\ntask.result()",
        "await ask_async('x') + await ask_async('y')",
        "r = await ask_async('xy')\nr",
        "with __import__('contextlib').nullcontext(await ask_async('xy')) as r: pass\nr",
        "''.join([await ask_async(q) for q in 'xy'])",
        "r = ''\nfor q in 'xy':\n    r += await ask_async(q)\nr",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_way_into_a_loop(asking: Repl, code: str) -> None:
    for _ in range(3):
        assert asking.show(f"import warnings; warnings.simplefilter('ignore')\n{code}", echo) == "'xy'"


def test_code_without_await_is_no_coroutine(asking: Repl) -> None:
    assert asking.show("asyncio._get_running_loop()") == ""
    assert asking.show("async def f(): await ask_async('a')\nasyncio._get_running_loop()") == ""
    assert error(asking.run("return 1"))[0] == "SyntaxError"
    assert error(asking.run("def f(): await g()"))[0] == "SyntaxError"


def test_timers_go_on_while_requests_are_under_way(asking: Repl) -> None:
    code = """
        order = []
        async def after(seconds, q):
            await asyncio.sleep(seconds)
            order.append(q)
        task = asyncio.create_task(ask_async('a'))
        await asyncio.gather(after(0.06, 3), after(0.001, 1), after(0.03, 2))
        order, await ask_async('b'), await task"""
    assert asking.show(plain(code), Meeting(2)) == "([1, 2, 3], 'B', 'A')"


def test_what_takes_too_long_is_given_up_and_its_reply_forgotten(asking: Repl) -> None:
    code = """
        try: await asyncio.wait_for(ask_async('slow'), 0.05)
        except TimeoutError: print('too long')
        await asyncio.gather(ask_async('b'), ask_async('c'))"""
    assert asking.show(plain(code), Meeting(3)) == "too long\n['B', 'C']"


def test_a_task_that_is_cancelled_before_it_began_asks_nothing(asking: Repl) -> None:
    asked = Never()
    code = "task = asyncio.create_task(ask_async('a'))\ntask.cancel()\nawait asyncio.wait([task])\ntask.cancelled()"
    assert asking.show(code, asked) == "True"
    assert asked.futures == []


def test_a_loop_that_never_rests_sees_the_replies(asking: Repl) -> None:
    later = Future[Json]()
    threading.Timer(0.1, later.set_result, ["there"]).start()
    code = "task = asyncio.create_task(ask_async('a'))\nwhile not task.done(): await asyncio.sleep(0)\ntask.result()"
    turn = asking.run(code, lambda _: later)
    assert turn.stdout == "'there'\n"
    assert turn.door_calls < 1000


@pytest.mark.parametrize(
    "code",
    [
        "await asyncio.Event().wait()",
        "asyncio.run(asyncio.Event().wait())",
        "asyncio.get_event_loop().run_until_complete(asyncio.Queue().get())",
        "await asyncio.gather(ask_async('a'), asyncio.Event().wait())",
        "asyncio.new_event_loop().run_forever()",
        "import threading; threading.Event().wait()",
        "import queue; queue.Queue().get()",
        "import threading; threading.Semaphore(0).acquire()",
    ],
)
def test_waiting_for_what_cannot_come_is_an_error(asking: Repl, code: str) -> None:
    for _ in range(2):
        assert error(asking.run(code, echo)) == (
            "RuntimeError",
            "nothing is under way that could end this wait, and there are no other threads",
        )
    assert asking.show("await ask_async('still there')", echo) == "'still there'"


def test_conditions_without_threads_keep_time(repl: Repl) -> None:
    code = """
        import queue, threading
        try: queue.Queue().get(timeout=0.02)
        except queue.Empty: print('empty')
        done = threading.Event()
        print(done.wait(0.02), done.set(), done.wait(), threading.Condition(threading.Lock())._is_owned())
        try: threading.Condition().wait()
        except RuntimeError as error: print(error)"""
    said = "empty\nFalse None True False\ncannot wait on un-acquired lock"
    assert repl.show(plain(code)) == said


# ---- errors ----------------------------------------------------------------------------------------------------------


def refuse_b(call: HostCall) -> Json:
    if call.arguments["q"] == "b":
        raise DoorRefusal("LimitExceeded", "no more")
    return call.text("q")


def test_a_refusal_is_raised_where_it_was_awaited(asking: Repl) -> None:
    refusing = answering(refuse_b)
    turn = asking.run("async def ask_b():\n    await ask_async('b')\nawait ask_b()", refusing)
    assert error(turn) == ("LimitExceeded", "no more")
    assert turn.error is not None
    assert "in ask_b\n    await ask_async('b')" in turn.error.traceback
    assert "_loop" not in turn.error.traceback
    assert error(asking.run("asyncio.run(asyncio.wait_for(ask_async('b'), 9))", refusing))[0] == "LimitExceeded"
    code = "await asyncio.gather(*map(ask_async, 'abc'), return_exceptions=True)"
    assert asking.show(code, refusing) == "['a', LimitExceeded('no more'), 'c']"


def test_a_task_group_cancels_the_others(asking: Repl) -> None:
    code = """
        try:
            async with asyncio.TaskGroup() as group:
                slow = group.create_task(ask_async('slow'))
                group.create_task(ask_async('b'))
        except* Exception as group: print(group.exceptions)
        slow.cancelled()"""

    def handler(call: HostCall) -> Future[Json]:
        refused = Future[Json]()
        if call.arguments["q"] == "b":
            refused.set_exception(DoorRefusal("LimitExceeded", "no more"))
        return refused

    assert asking.show(plain(code), handler) == "(LimitExceeded('no more'),)\nTrue"


@pytest.mark.parametrize("q", ["'\\ud800'", "object()", "float('nan')"])
def test_a_request_that_cannot_be_written_is_an_error_of_its_own(asking: Repl, q: str) -> None:
    code = f"[type(r).__name__ for r in await asyncio.gather(ask_async({q}), ask_async('b'), return_exceptions=True)]"
    assert asking.show(code, echo) in ("['ValueError', 'str']", "['TypeError', 'str']")


def test_without_a_handler_every_request_is_refused(asking: Repl) -> None:
    kind, message = error(asking.run("await ask_async('a')"))
    assert (kind, message) == ("RuntimeError", "nothing answers ask here")


# ---- in a worker -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def pool(loaded: Loaded) -> AsyncIterator[WorkerPool]:
    made = WorkerPool(loaded, sessions=4)
    yield made
    await made.close()


LIMITS = Limits(turn_seconds=20, memory_bytes=96 * MIB)


async def test_requests_of_a_worker_meet_at_the_server(pool: WorkerPool) -> None:
    together = asyncio.Barrier(20)

    async def answer(call: HostCall) -> Json:
        await together.wait()
        return call.integer("q")

    session = await pool.create("a", "core", LIMITS)
    for code in (
        "sum(map(int, await asyncio.gather(*map(ask_async, range(20)))))",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor() as pool: found = sum(map(int, pool.map(ask, range(20))))\nfound",
    ):
        turn = await asyncio.wait_for(session.execute(ASK + code, answer, ignore), 30)
        assert turn.stdout == "190\n", turn


@pytest.mark.parametrize("stop", ["interrupt", "cancel"])
async def test_a_worker_stopped_in_an_await_cancels_all_it_asked_for(pool: WorkerPool, stop: str) -> None:
    asked, cancelled = asyncio.Semaphore(0), 0

    async def answer(call: HostCall) -> Json:
        nonlocal cancelled
        asked.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return None

    session = await pool.create("a", "core", LIMITS)
    running = asyncio.create_task(
        session.execute(ASK + "await asyncio.gather(*map(ask_async, range(7)))", answer, ignore)
    )
    for _ in range(7):
        await asyncio.wait_for(asked.acquire(), 20)
    act: Callable[[], object] = session.interrupt if stop == "interrupt" else running.cancel
    act()
    await asyncio.wait([running], timeout=20)
    assert running.cancelled() if stop == "cancel" else running.result().status is Status.ROLLED_BACK
    assert cancelled == 7
