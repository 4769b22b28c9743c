"""A function for the guest's code is an entry in one table and a stub: nothing else has to know of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rlm.v1 import session_pb2

from rlm_server.config.settings import Settings
from rlm_server.repl.functions import FUNCTIONS, Function, Functions, Repl
from rlm_server.server import image_specs, serving
from sandbox.door import TEXT, DoorRefusal, HostCall, Json
from sandbox.vm.image import CORE_IMPORTS, ImageSpec, Loaded, prepare
from tests.servers import Served
from tests.system.stage import Caller, Play, code

STUB = '''\
"""A function of a test."""

import _door
from _requests import Request, asking
from _rlm import offered, text


@offered
@asking
def shout(words):
    """Return words as they are shouted."""
    return Request("shout", lambda loud: loud, words=text("words", words))


@offered
def whisper(words):
    """Return words as they are whispered."""
    return _door.call("whisper", words=words)
'''
LINE = "- shout(words) -> str: the words as they are shouted."


async def shouted(repl: Repl, call: HostCall) -> Json:
    """Answer a request `shout(words)`."""
    words = call.text("words")
    if not words:
        raise DoorRefusal("ValueError", "there is nothing to shout")
    return f"{words.upper()}! ({repl.calls.options.model})"


def with_more(entry: Function) -> Functions:
    return Functions((*FUNCTIONS.entries, entry))


@pytest.fixture(scope="module")
def with_shout(tmp_path_factory: pytest.TempPathFactory) -> Functions:
    stub = tmp_path_factory.mktemp("guest") / "_shout.py"
    stub.write_text(STUB)
    return with_more(
        Function(op="shout", arguments={"words": TEXT}, in_runs=shouted, in_sessions=shouted, prompt=LINE, stub=stub)
    )


@pytest.fixture(scope="module")
def shouting(with_shout: Functions) -> Iterator[Loaded]:
    """A golden image that has the stub."""
    loaded = prepare([ImageSpec("core", CORE_IMPORTS, with_shout.guest_modules)])
    yield loaded
    loaded.program.close()


@asynccontextmanager
async def served(play: Play, functions: Functions, loaded: Loaded, data_dir: Path) -> AsyncIterator[Caller]:
    settings: Any = {"data_dir": data_dir, "listen": "127.0.0.1:0", "grace_seconds": 0.2}
    async with serving(
        Settings.load(**settings), scripts={"play": play}, loaded=loaded, functions=functions
    ) as running:
        caller = Caller(running.address, running.key)
        try:
            yield caller
        finally:
            await caller.channel.close(None)


async def test_a_new_function_can_be_called_in_a_session(
    with_shout: Functions, shouting: Loaded, tmp_path: Path
) -> None:
    async with served(Play(""), with_shout, shouting, tmp_path) as caller:
        session = await caller.open_session()
        assert (await caller.turn(session, "shout('fire')")).printed == "'FIRE! (play)'\n"
        assert (await caller.turn(session, "await shout_async('smoke')")).printed == "'SMOKE! (play)'\n"
        pool = "from concurrent.futures import ThreadPoolExecutor as Pool\nlist(Pool().map(shout, ['a', 'b']))"
        assert (await caller.turn(session, pool)).printed == "['A! (play)', 'B! (play)']\n"
        assert (await caller.turn(session, "shout = None")).result.status == session_pb2.TURN_STATUS_OK
        assert (await caller.turn(session, "shout('again')")).printed == "'AGAIN! (play)'\n", "the name is put back"
        refused = (await caller.turn(session, "shout('')")).result
        assert (refused.error.type, refused.error.message) == ("ValueError", "there is nothing to shout")
        assert "_shout" not in refused.error.traceback, "only the program's own frames are shown"
        assert "shout" not in [variable.name for variable in refused.variables], "it is none of the program's variables"


async def test_a_new_function_can_be_called_in_a_run_and_its_model_is_told_of_it(
    with_shout: Functions, shouting: Loaded, tmp_path: Path
) -> None:
    play = Play(code("FINAL(shout('done'))"))
    async with served(play, with_shout, shouting, tmp_path) as caller:
        assert (await caller.ask()).run.answer == "DONE! (play)"
        assert f"\n{LINE}\n" in play.asked[0].system


async def test_a_stub_without_an_entry_is_told_that_there_is_no_such_function(
    with_shout: Functions, shouting: Loaded, tmp_path: Path
) -> None:
    play = Play(code("try: whisper('x')\nexcept ValueError as error: FINAL(str(error))"))
    async with served(play, with_shout, shouting, tmp_path) as caller:
        session = await caller.open_session()
        error = (await caller.turn(session, "whisper('x')")).result.error
        assert (error.type, error.message) == ("ValueError", "there is nothing called 'whisper' to ask for")
        assert (await caller.ask()).run.answer == error.message


async def test_what_a_session_does_not_have_says_why_and_what_there_is() -> None:
    anything: Any = None
    for op, why in (("rlm_query", "a child RLM is part of a run"), ("budget", "turns and depth are a run's")):
        with pytest.raises(DoorRefusal) as refusal:
            await FUNCTIONS.answer_session(Repl(anything, anything, "acme", anything), HostCall(op, {}))
        assert refusal.value.type == "RuntimeError"
        there = ", ".join(entry.op for entry in FUNCTIONS.entries if not isinstance(entry.in_sessions, str))
        assert str(refusal.value) == f"{op} cannot be called in a session: {why}. A session has {there}"


async def test_what_a_run_does_not_have_says_why() -> None:
    anything: Any = None
    entry = Function(
        op="wave", arguments={}, in_runs="nobody sees it", in_sessions=shouted, prompt="- wave", stub=Path("_wave.py")
    )
    assert "wave" not in with_more(entry).prompt
    with pytest.raises(DoorRefusal, match=r"wave cannot be called in a run: nobody sees it. A run has llm_query, "):
        await with_more(entry).answer_run(anything, HostCall("wave", {}))


async def test_an_unknown_name_is_cut_before_it_is_repeated() -> None:
    anything: Any = None
    with pytest.raises(DoorRefusal) as refusal:
        await FUNCTIONS.answer_run(anything, HostCall("x" * 1_000_000, {}))
    assert len(str(refusal.value)) < 200


def test_two_functions_cannot_have_one_name() -> None:
    entry = Function(op="search", arguments={}, in_runs=shouted, in_sessions=shouted, prompt="", stub=Path("_other.py"))
    with pytest.raises(ValueError, match="two functions called search"):
        with_more(entry)
    entry = Function(
        op="find", arguments={}, in_runs=shouted, in_sessions=shouted, prompt="", stub=Path("elsewhere/_search.py")
    )
    with pytest.raises(ValueError, match="two functions called _search"):
        with_more(entry)


def test_the_golden_images_change_with_the_stubs(with_shout: Functions) -> None:
    settings = Settings.load(images={"graphs": {"imports": ["graphlib"]}})
    usual, more = ({s.name: s.prelude() for s in image_specs(settings, f)} for f in (FUNCTIONS, with_shout))
    assert usual.keys() == more.keys() == {"core", "data", "graphs"}
    assert all(repr(STUB) in more[name] and repr(STUB) not in usual[name] for name in usual)


UNLISTED = {"FINAL", "FINAL_VAR", "SUBMIT", "llm_query_batched_async", "rlm_query_batched_async"}
"""Names that models know from elsewhere, or can guess."""


async def test_a_model_is_told_of_every_function_there_is_and_of_no_other(server: Served) -> None:
    async with server(Play("")) as served:
        session = await served.caller.open_session()
        printed = (await served.caller.turn(session, "import _runner; print(*_runner.reserved, 'answer')")).printed
    offered = set(printed.split()) - {"context"}
    listed = re.findall(r"^- ([\w, ]+)[(:]", FUNCTIONS.prompt, re.MULTILINE)
    assert {name for names in listed for name in names.split(", ")} <= offered
    assert offered - UNLISTED <= set(re.findall(r"\w+", FUNCTIONS.prompt))
    assert not UNLISTED & set(re.findall(r"\w+", FUNCTIONS.prompt))
