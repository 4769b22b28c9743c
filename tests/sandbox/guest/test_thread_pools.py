"""Thread pools without threads: what asks the host is under way at once, anything else runs as it is submitted."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from sandbox.door import DoorRefusal, HostCall, Json
from tests.sandbox.guest.test_async import ASK, Meeting, Never, echo, error, plain
from tests.sandbox.guest.test_async_ends import ENDED
from tests.sandbox.repl import Repl, answering

POOLS = "from concurrent.futures import ThreadPoolExecutor, as_completed, wait\nimport functools\n"


@pytest.fixture
def asking(repl: Repl) -> Repl:
    repl.show(ASK + POOLS)
    return repl


@pytest.mark.parametrize(
    "code",
    [
        """
        with ThreadPoolExecutor() as pool: found = list(pool.map(ask, 'abcde'))
        found""",
        "list(ThreadPoolExecutor().map(ask, 'abcde'))",
        """
        with ThreadPoolExecutor(max_workers=8) as pool: futures = [pool.submit(ask, q) for q in 'abcde']
        [future.result() for future in futures]""",
        """
        pool = ThreadPoolExecutor()
        futures = {pool.submit(ask, q): q for q in 'abcde'}
        sorted(future.result() for future in as_completed(futures) if futures[future].upper() == future.result())""",
        """
        pool = ThreadPoolExecutor()
        done, rest = wait([pool.submit(ask, q) for q in 'abcde'])
        sorted(future.result() for future in done)""",
        """
        pool, found = ThreadPoolExecutor(), []
        for q in 'abcde': pool.submit(ask, q).add_done_callback(lambda future: found.append(future.result()))
        pool.shutdown()
        sorted(found)""",
        "list(ThreadPoolExecutor().map(functools.partial(ask), 'abcde'))",
        "[f.result() for f in [ThreadPoolExecutor().submit(functools.partial(ask, q=q)) for q in 'abcde']]",
        """
        import time
        pool = ThreadPoolExecutor()
        futures = [pool.submit(ask, q) for q in 'abcde']
        while not all(future.done() for future in futures): time.sleep(0.001)
        [future.result(0) for future in futures]""",
        """
        from concurrent.futures.thread import ThreadPoolExecutor as Other
        with Other(thread_name_prefix='mine') as pool: found = list(pool.map(ask, 'abcde', timeout=60))
        found""",
    ],
)
def test_requests_are_under_way_at_once(asking: Repl, code: str) -> None:
    assert asking.show(plain(code), Meeting(5)) == "['A', 'B', 'C', 'D', 'E']"


def test_they_complete_in_the_order_of_their_replies(asking: Repl) -> None:
    code = "pool = ThreadPoolExecutor()\n[f.result() for f in as_completed([pool.submit(ask, q) for q in 'abc'])]"
    there: list[tuple[HostCall, Future[Json]]] = []

    def handler(call: HostCall) -> Future[Json]:
        future = Future[Json]()
        there.append((call, future))
        if len(there) == 3:
            threading.Timer(0.05, answer).start()
        return future

    def answer() -> None:
        for i in (2, 0, 1):
            there[i][1].set_result(there[i][0].text("q"))

    assert asking.show(code, handler) == "['c', 'a', 'b']"


def test_no_more_than_the_workers_wanted_are_under_way(asking: Repl) -> None:
    meeting = Meeting(2, 2, 2, 1)
    assert asking.show("len(list(ThreadPoolExecutor(2).map(ask, 'abcdefg')))", meeting) == "7"
    assert meeting.most == 2


def test_several_pools_and_a_loop_share_what_the_host_allows(asking: Repl) -> None:
    meeting = Meeting(500, 500, 200)
    code = """
        futures = [ThreadPoolExecutor().submit(ask, n) for n in range(600)]
        found = await asyncio.gather(*map(ask_async, range(300)), *(asyncio.to_thread(ask, n) for n in range(300)))
        len(found), len(wait(futures).done)"""
    assert asking.show(plain(code), meeting) == "(600, 600)"
    assert meeting.most == 500


def test_another_function_runs_when_it_is_submitted_in_the_caller(asking: Repl) -> None:
    code = """
        order = []
        def work(n):
            order.append(n)
            return n * n
        with ThreadPoolExecutor(max_workers=2, initializer=order.append, initargs=('first',)) as pool:
            futures = [pool.submit(work, n) for n in range(3)]
            print(order, [future.done() for future in futures])
            print([future.result() for future in futures], list(pool.map(pow, [2, 3], [3, 2])))"""
    assert asking.show(plain(code)) == "['first', 0, 1, 2] [True, True, True]\n[0, 1, 4] [8, 9]"


def test_errors_are_those_of_the_future(asking: Repl) -> None:
    def refuse(call: HostCall) -> Json:
        if call.text("q") == "b":
            raise DoorRefusal("LimitExceeded", "no more")
        return "fine"

    code = """
        pool = ThreadPoolExecutor()
        for function, *q in ((ask, 'a'), (ask, 'b'), (ask,), (len, 3), (sys.exit, 3), (print, 1, 2)):
            future = pool.submit(function, *q)
            print(type(future.exception()).__name__)
        try: list(pool.map(ask, 'abc'))
        except Exception as error: print(repr(error))"""
    names = "NoneType\nLimitExceeded\nTypeError\nTypeError\nSystemExit\n1 2\nNoneType\n"
    assert asking.show("import sys" + plain(code), answering(refuse)) == names + "LimitExceeded('no more')"


def test_an_error_of_the_initializer_breaks_no_later_call(asking: Repl) -> None:
    code = "pool = ThreadPoolExecutor(initializer=lambda: 1 / 0)\npool.submit(ask, 'a')"
    assert error(asking.run(code))[0] == "ZeroDivisionError"
    assert error(asking.run("ThreadPoolExecutor(0)"))[0] == "ValueError"
    assert error(asking.run("ThreadPoolExecutor(initializer=1)"))[0] == "TypeError"


def test_what_takes_too_long_is_a_timeout(asking: Repl) -> None:
    code = """
        pool = ThreadPoolExecutor()
        future = pool.submit(ask, 'slow')
        for attempt in (lambda: future.result(timeout=0.02), lambda: future.exception(0),
                        lambda: next(pool.map(ask, 'x', timeout=0)),
                        lambda: list(as_completed([future], timeout=0.02))):
            try: attempt()
            except TimeoutError: print('too long')
        print(len(wait([future], timeout=0.02).not_done), future.running(), future.done(), future.cancel())"""
    assert asking.show(plain(code), Never()) == "too long\n" * 4 + "1 True False False"


def test_what_has_not_begun_can_be_cancelled(asking: Repl) -> None:
    code = """
        pool = ThreadPoolExecutor(max_workers=1)
        futures = [pool.submit(ask, q) for q in 'abcd']
        print([future.cancel() for future in futures[:3]], futures[0].result(), futures[3].result())
        futures = [pool.submit(ask, q) for q in 'efg']
        pool.shutdown(wait=False, cancel_futures=True)
        print([future.cancelled() for future in futures], futures[0].result())
        try: pool.submit(ask, 'h')
        except RuntimeError as error: print(error)"""
    asked: list[str] = []

    def answer(call: HostCall) -> Json:
        asked.append(call.text("q"))
        return call.text("q")

    said = "[False, True, True] a d\n[False, True, True] e\ncannot schedule new futures after shutdown"
    assert asking.show(plain(code), answering(answer)) == said
    assert asked == ["a", "d", "e"]


def test_a_callback_that_looks_at_other_futures_goes_no_deeper_for_each(asking: Repl) -> None:
    code = """
        pool = ThreadPoolExecutor()
        futures = [pool.submit(ask, n) for n in range(400)]
        seen = []
        for future in futures: future.add_done_callback(lambda f: seen.append(sum(g.done() for g in futures)))
        wait(futures)
        len(seen), max(seen)"""
    assert asking.show(plain(code), Meeting(400)) == "(400, 400)"


def test_a_callback_may_submit_more(asking: Repl) -> None:
    code = """
        import threading
        pool, found, enough = ThreadPoolExecutor(), [], threading.Event()
        def then(future):
            found.append(future.result())
            if len(found) == 5: enough.set()
            else: pool.submit(ask, len(found)).add_done_callback(then)
        pool.submit(ask, 0).add_done_callback(then)
        enough.wait(), found"""
    assert asking.show(plain(code), echo) == "(True, ['0', '1', '2', '3', '4'])"


def test_futures_end_with_the_turn_they_were_asked_in(asking: Repl) -> None:
    asking.show("pool = ThreadPoolExecutor(1)\nfutures = [pool.submit(ask, q) for q in 'abc']", Never())
    asked: list[HostCall] = []
    code = "[str(future.exception()) for future in as_completed(futures)], pool.submit(ask, 'd').result()"

    def answer(call: HostCall) -> Json:
        asked.append(call)
        return call.text("q")

    assert asking.show(code, answering(answer)) == repr(([ENDED] * 3, "d"))
    assert len(asked) == 1, "what was to follow in an earlier turn is not asked for in this one"


def test_there_are_no_processes(repl: Repl) -> None:
    kind, message = error(repl.run("from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()"))
    assert kind == "RuntimeError"
    assert message.startswith("there are no processes here; a ThreadPoolExecutor")


def test_a_pool_that_is_left_asks_for_nothing_by_itself(asking: Repl) -> None:
    asking.show("ThreadPoolExecutor().submit(ask, 'a')", Never())
    assert asking.show("ask('b'), [*map(ask, 'cd')]", echo) == "('b', ['c', 'd'])"
