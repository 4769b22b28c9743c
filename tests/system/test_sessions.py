"""The REPL for those who bring their own loop: whatever the code does, the session goes on."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from rlm.v1 import session_pb2, types_pb2
from rlm_client.durations import milliseconds

from tests.servers import Served
from tests.system.books import check_settled, rows
from tests.system.stage import USD, Play, eventually, refusal

OK = session_pb2.TURN_STATUS_OK
ERROR = session_pb2.TURN_STATUS_ERROR
ROLLED_BACK = session_pb2.TURN_STATUS_ROLLED_BACK
MIB = 1 << 20


async def test_a_session_keeps_its_variables_and_reads_its_context(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        context = await caller.upload("one two three")
        session = await caller.open_session(context_id=context.context_id)
        assert (await caller.turn(session, "words = context.split()")).result.status == OK
        seen = await caller.turn(session, "import sys\nprint(len(words))\nprint('oh', file=sys.stderr)\nwords[-1]")
        assert "3\n" in seen.printed
        assert "oh\n" in seen.printed
        assert "'three'\n" in seen.printed
        assert ("words", "list", 3) in [(v.name, v.type, v.length) for v in seen.result.variables]
        assert seen.result.output_bytes == len(seen.printed)


async def test_output_is_seen_before_the_turn_ends(server: Served) -> None:
    seen = asyncio.Event()

    async def sub(prompt: str) -> str:
        await seen.wait()
        return "seen"

    async with server(Play("", sub=sub)) as served:
        session = await served.caller.open_session()
        kinds = []
        async with asyncio.timeout(60):
            async for response in served.caller.execute(session, "print('first')\nprint(llm_query('wait'))"):
                kinds.append(response.WhichOneof("event"))
                if response.output.text == "first\n":
                    seen.set()
        assert kinds == ["output", "call_finished", "output", "result"]


@pytest.mark.parametrize(
    ("source", "status", "error"),
    [
        ("1 / 0", ERROR, "ZeroDivisionError"),
        ("this does not parse", ERROR, "SyntaxError"),
        ("x = '''", ERROR, "SyntaxError"),
        ("(" * 10_000, ERROR, ""),
        ("def f(): return f()\nf()", ERROR, "RecursionError"),
        ("import sys; sys.exit(3)", None, ""),
        ("import os; os._exit(3)", ROLLED_BACK, "EXIT"),
        ("raise KeyboardInterrupt", ERROR, "KeyboardInterrupt"),
        ("raise BaseException('\\ud800')", ERROR, "BaseException"),
        ("kept = 2\nwhile True: pass", ROLLED_BACK, "TURN_TIME"),
        ("kept = 2\nsum(range(10**12))", ROLLED_BACK, "TURN_TIME"),
        ("import time; time.sleep(1e9)", ROLLED_BACK, "TURN_TIME"),
        ("x = bytearray(1 << 30)", ERROR, "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", ERROR, "MemoryError"),
        ("open('/etc/passwd')", ERROR, "FileNotFoundError"),
        ("import socket; socket.socket().connect(('127.0.0.1', 80))", ERROR, ""),
        ("import subprocess; subprocess.run(['ls'])", ERROR, ""),
        ("llm_query(7)", ERROR, "TypeError"),
        ("llm_query('\\ud800')", ERROR, ""),
        ("rlm_query('a child')", ERROR, "RuntimeError"),
        ("llm_query('x', model='nobody')", ERROR, "ValueError"),
        ("llm_query('x', model='n' * 1_000_000)", ERROR, "ValueError"),
        ("llm_query('x', model='')", ERROR, "ValueError"),
        ("llm_query_batched('hello')", ERROR, "TypeError"),
    ],
)
async def test_a_session_goes_on_after(server: Served, source: str, status: int | None, error: str) -> None:
    async with server(Play("")) as served:
        limits = types_pb2.SandboxLimits(
            turn_time=milliseconds(1_500 if error == "TURN_TIME" else 60_000), memory_bytes=200 * MIB
        )
        session = await served.caller.open_session(limits=limits)
        await served.caller.turn(session, "kept = 1")
        result = (await served.caller.turn(session, source)).result
        assert result.status in ((status,) if status is not None else (ERROR, ROLLED_BACK))
        stop = session_pb2.StopReason.Name(result.stop_reason).removeprefix("STOP_REASON_")
        assert error in (stop if result.status == ROLLED_BACK else result.error.type)
        assert bool(result.error.type) == (result.status != ROLLED_BACK)
        if result.status == ROLLED_BACK:
            assert (await served.caller.turn(session, "kept")).printed == "1\n"
        after = await served.caller.turn(session, "kept + 1, llm_query('still there?')")
        assert after.result.status == OK
        assert after.printed == "(2, 'ok')\n"
        await served.caller.delete(session)
        check_settled(served.data_dir)


async def test_output_without_end_is_cut_and_counted(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session(limits=types_pb2.SandboxLimits(output_bytes=4000))
        seen = await served.caller.turn(session, "for i in range(100_000): print('line', i)")
        assert seen.result.truncated
        assert seen.result.output_bytes == sum(len(f"line {i}\n") for i in range(100_000))
        assert len(seen.printed) < 4200
        assert seen.printed.startswith("line 0\n")
        assert seen.printed.endswith("line 99999\n")
        assert "cut out" in seen.printed


async def test_names_that_a_turn_overwrites_are_back_in_the_next(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        broken = (
            "import builtins, sys\nllm_query = print = None\nbuiltins.len = None\nsys.stdout = None\nanswer = 7\n"
            "sys.modules.clear()"
        )
        await served.caller.turn(session, broken)
        seen = await served.caller.turn(session, "del print\nprint(llm_query('x'), len('abc'))")
        assert seen.printed == "ok 3\n", seen.result.error


async def test_a_repeated_request_returns_the_first_result_and_runs_nothing(server: Served) -> None:
    async with server(Play("")) as served:
        caller = served.caller
        session = await caller.open_session(request_id="session")
        assert await caller.open_session(request_id="session") == session
        together = await asyncio.gather(*[caller.open_session(request_id="another") for _ in range(5)])
        assert len(set(together)) == 1
        await caller.turn(session, "n = 0")
        first = await caller.turn(session, "n += 1\nprint(n)", "turn")
        again = await caller.turn(session, "n += 1\nprint(n)", "turn")
        assert again.result == first.result
        both = await asyncio.gather(*[caller.turn(session, "n += 10", "at once") for _ in range(3)])
        assert both[0].result == both[1].result == both[2].result
        assert (await caller.turn(session, "n")).printed == "11\n"


async def test_turns_of_one_session_run_one_after_another(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        await served.caller.turn(session, "n = 0")
        await asyncio.gather(*[served.caller.turn(session, "m = n\nllm_query(str(n))\nn = m + 1") for _ in range(5)])
        assert (await served.caller.turn(session, "n")).printed == "5\n"


@pytest.mark.parametrize("source", ["while True: pass", "llm_query('hang')"])
async def test_a_caller_who_goes_away_stops_the_turn_and_undoes_it(server: Served, source: str) -> None:
    async def hang(prompt: str) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async with server(Play("", sub=hang)) as served:
        session = await served.caller.open_session()
        await served.caller.turn(session, "n = 1")
        lost = served.another()
        async for response in lost.execute(session, f"n = 2\nprint('begun')\n{source}"):
            assert response.output.text == "begun\n"
            break
        await lost.channel.close(None)
        async with asyncio.timeout(60):
            assert (await served.caller.turn(session, "n")).printed == "1\n"
        await served.caller.delete(session)
        check_settled(served.data_dir)


async def test_a_session_that_is_deleted_stops_its_turns_and_says_what_it_spent(server: Served) -> None:
    async with server(Play(""), sessions=1) as served:
        session = await served.caller.open_session()
        assert (
            (await served.caller.turn(session, "print(llm_query_batched(['a', 'b', 'a']))")).calls[0].spent.call_count
        )
        loop = aiter(served.caller.execute(session, "print('begun')\nwhile True: pass"))
        assert (await anext(loop)).output.text == "begun\n"
        queued = asyncio.create_task(refusal(served.another().turn(session, "1")))
        await asyncio.sleep(0)
        spent = await served.caller.delete(session)
        assert spent.call_count == 2
        assert spent.nano_usd == sum(1000 * u.input + 5000 * u.output for _, u in served.provider.billed)
        rest = [response async for response in loop]
        assert (rest[-1].result.status, rest[-1].result.stop_reason) == (
            ROLLED_BACK,
            session_pb2.STOP_REASON_INTERRUPTED,
        )
        assert (await queued).code is grpc.StatusCode.NOT_FOUND
        assert (await refusal(served.caller.turn(session, "1"))).code is grpc.StatusCode.NOT_FOUND
        check_settled(served.data_dir)
        await served.caller.open_session()


async def test_sessions_beyond_the_servers_limit_are_refused_while_all_are_busy(server: Served) -> None:
    async with server(Play(""), sessions=2) as served:
        busy = [await served.caller.open_session() for _ in range(2)]
        turns = [aiter(served.caller.execute(session, "print('begun')\nwhile True: pass")) for session in busy]
        for turn in turns:
            await anext(turn)
        said = await refusal(served.caller.open_session())
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_FULL")
        assert "google.rpc.RetryInfo" in said.details
        await served.caller.delete(busy[0])
        await served.caller.open_session()


async def test_sessions_that_rest_hibernate_where_their_place_is_wanted_and_wake(server: Served) -> None:
    async with server(Play(""), sessions=2) as served:
        context = await served.caller.upload("the text " * 1000)
        sessions = [await served.caller.open_session(context_id=context.context_id) for _ in range(6)]
        for number, session in enumerate(sessions):
            await served.caller.turn(session, f"mine = [{number}]\n_ = open('/tmp/mine', 'w').write('{number}')")
        for number, session in [*enumerate(sessions)][::-1] * 2:
            seen = await served.caller.turn(session, "mine, open('/tmp/mine').read(), len(context), context[:8]")
            assert seen.printed == f"([{number}], '{number}', 9000, 'the text')\n"
        assert len(list((served.data_dir / "sessions").iterdir())) == 6
        for session in sessions:
            await served.caller.delete(session)
        assert list((served.data_dir / "sessions").iterdir()) == []
        check_settled(served.data_dir)


async def test_a_tenant_has_no_more_sessions_than_it_may(server: Served) -> None:
    async with server(Play(""), tenant_sessions=2) as served:
        first = await served.caller.open_session()
        await served.caller.open_session()
        said = await refusal(served.caller.open_session())
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")
        assert "tenant_sessions" in said.message
        await (await served.tenant("another")).open_session()
        await served.caller.delete(first)
        await served.caller.open_session()


async def test_a_tenants_own_limits_hold_for_it_alone(server: Served) -> None:
    async with server(Play(""), tenants={"small": {"memory_bytes": 128 * MIB, "files": 2}}) as served:
        small = await served.tenant("small")
        for asked in (types_pb2.SandboxLimits(memory_bytes=200 * MIB), types_pb2.SandboxLimits(file_count=3)):
            said = await refusal(small.open_session(limits=asked))
            assert said.code is grpc.StatusCode.INVALID_ARGUMENT
        session = await small.open_session()
        seen = await small.turn(session, "block = bytes(150 << 20)")
        assert seen.result.error.type == "MemoryError"
        seen = await small.turn(session, "for i in range(3): open(f'/tmp/{i}', 'w').close()")
        assert seen.result.error.type == "OSError"
        theirs = await served.caller.open_session(limits=types_pb2.SandboxLimits(memory_bytes=200 * MIB))
        assert (await served.caller.turn(theirs, "len(bytes(140 << 20))")).printed == f"{140 << 20}\n"


async def test_an_operators_image_has_its_modules_imported(server: Served) -> None:
    async with server(Play(""), images={"graphs": {"imports": ["graphlib", "collections.abc"]}}) as served:
        session = await served.caller.open_session(image="graphs")
        assert (await served.caller.turn(session, "import sys; 'graphlib' in sys.modules")).printed == "True\n"
        assert (await served.caller.turn(session, "llm_query('x')")).printed == "'ok'\n"
        said = await refusal(served.caller.open_session(image="none"))
        assert "core, data, graphs" in said.message


def wanted(name: str, value: int) -> types_pb2.SandboxLimits:
    limits = types_pb2.SandboxLimits()
    if name == "turn_time":
        limits.turn_time.FromMilliseconds(value)
    else:
        setattr(limits, name, value)
    return limits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_bytes", 513 * MIB),
        ("memory_bytes", -1),
        ("memory_bytes", 1),
        ("turn_time", 60_001),
        ("turn_time", 0),
        ("output_bytes", (64 << 10) + 1),
        ("door_call_count", 10_001),
        ("door_bytes", 257 * MIB),
        ("door_waiting_count", 1_001),
        ("file_bytes", 65 * MIB),
        ("file_count", -1),
    ],
)
async def test_limits_that_cannot_be_are_refused_by_name(server: Served, name: str, value: int) -> None:
    async with server(Play(""), sessions=1) as served:
        said = await refusal(served.caller.open_session(limits=wanted(name, value)))
        assert (said.code, said.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [f"limits.{name}"])
        await served.caller.open_session()


async def test_a_session_spends_no_more_than_its_budget(server: Served) -> None:
    async with server(Play("", sub=lambda prompt: "x" * 16_000)) as served:
        session = await served.caller.open_session(budget=types_pb2.Budget(nano_usd=USD // 10))
        seen = await served.caller.turn(session, "for i in range(100): llm_query(str(i))")
        assert (seen.result.status, seen.result.error.type) == (ERROR, "LimitExceeded")
        assert 0 < (await served.caller.delete(session)).nano_usd <= USD // 10
        check_settled(served.data_dir)


async def test_a_session_nobody_uses_is_ended(server: Served) -> None:
    async with server(Play(""), session_idle_seconds=0.3) as served:
        session = await served.caller.open_session()
        closed = "SELECT 1 FROM account WHERE id = ? AND closed = 1"
        await eventually(lambda: rows(served.data_dir, closed, session))
        said = await refusal(served.caller.turn(session, "1"))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_ENDED")
        assert "0.3 s (session_idle_seconds)" in said.message
        assert (await refusal((await served.tenant("b")).turn(session, "1"))).reason == "NOT_FOUND"
        check_settled(served.data_dir)


async def test_a_session_that_is_too_old_is_ended(server: Served) -> None:
    async with server(Play(""), session_seconds=0.5) as served:
        session = await served.caller.open_session()

        closed = "SELECT 1 FROM account WHERE id = ? AND closed = 1"
        await eventually(lambda: rows(served.data_dir, closed, session))
        said = await refusal(served.caller.turn(session, "1"))
        assert (said.reason, "0.5 s (session_seconds)" in said.message) == ("SESSION_ENDED", True)


async def test_a_server_that_stops_ends_its_sessions(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        loop = aiter(served.caller.execute(session, "print('begun')\nwhile True: pass"))
        await anext(loop)
    check_settled(served.data_dir)
