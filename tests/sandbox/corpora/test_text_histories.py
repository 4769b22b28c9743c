"""Whatever happens to a session, its mapped strings answer as native ones do: random texts, operations and fates."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sandbox.corpora.corpus import BLOCK, Kind, in_memory
from sandbox.limits import Limits
from sandbox.pool.pool import WorkerPool
from sandbox.pool.snapshots import SessionStore
from sandbox.pool.worker_session import WorkerSession
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from tests.sandbox.pool.test_hibernation import show
from tests.sandbox.pool.test_pool import run

WIDEST = [0x7F, 0xFF, 0xFFFF, 0x10FFFF]
MOST = 3 * BLOCK


def characters(widest: int, most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(max_codepoint=widest, exclude_categories=["Cs", "Cn"]), min_size=1, max_size=most)


class Made(NamedTuple):
    """A text of up to three blocks' characters, whose widest character is anywhere in it."""

    unit: str
    length: int
    end: str

    @property
    def text(self) -> str:
        return self.unit * (self.length // len(self.unit) + 1) + self.end


TEXTS = st.sampled_from(WIDEST).flatmap(
    lambda widest: st.builds(Made, characters(widest, 40), st.integers(0, MOST), characters(widest, 40))
)
INDEX = st.integers(-MOST, MOST)
SMALL = st.integers(0, 50)
NEEDLE = st.sampled_from(WIDEST).flatmap(lambda widest: characters(widest, 3))


def some(form: str, *of: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.tuples(*of).map(lambda values: form.format(*map(ascii, values)))


OPERATION = st.one_of(
    some("t[{}:{}][:99], len(t[{}:])", INDEX, INDEX, INDEX),
    some("t[{}:{}:7][:99], t[::-1][{}:{}]", INDEX, INDEX, SMALL, SMALL),
    some("{} in t, t.find({}), t.rfind({}), t.count({})", NEEDLE, NEEDLE, NEEDLE, NEEDLE),
    some("[len(x) for x in t.split({})][:50], t.partition({})[2][:50]", NEEDLE, NEEDLE),
    some("[len(x) for x in t.splitlines()][:50], t.strip()[{}:{}]", SMALL, SMALL),
    some("[m.span() for m in re.finditer(re.escape({}), t)][:20]", NEEDLE),
    some(
        "re.sub(re.escape({}), lambda _: {}, t)[-99:], [x[:50] for x in re.findall(r'\\w+', t)[{}:{}]]",
        NEEDLE,
        NEEDLE,
        SMALL,
        SMALL,
    ),
    some("t.replace({}, {})[:99], t.startswith({}), t.endswith({})", NEEDLE, NEEDLE, NEEDLE, NEEDLE),
    some("json.loads(json.dumps(t)) == t, json.dumps(t)[{}:{}]", SMALL, SMALL),
    some("t == ''.join(list(t)), {{t: {}}}[''.join(list(t))], hash(t) == hash(''.join(list(t)))", SMALL),
    some("[ord(c) for c in t[{}:]][:30], max(t), min(t), t.isascii()", INDEX),
    some("f'<{{t[-3:]}}>', len(f'{{t}}!'), len({}.join([t, t])), t + {} == t, t < t + {}", NEEDLE, NEEDLE, NEEDLE),
    some("len(t.encode()), t.encode('utf-16-le')[{}:{}], t.upper()[:40], t.casefold()[-40:]", SMALL, SMALL),
    some("t != t[:-1], t in {{t}}, len(set(t)), sorted(set(t))[{}:{}]", SMALL, SMALL),
)

FATE = st.sampled_from(["turn", "rollback", "hibernate", "fork and give up", "kill", "kill in a turn"])


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(
    loaded: Loaded, loop: asyncio.AbstractEventLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerPool]:
    folder: Path = tmp_path_factory.mktemp("sessions")

    async def start() -> WorkerPool:
        return WorkerPool(loaded, sessions=4, spares=1, store=SessionStore(folder, b"k" * 32))

    made = loop.run_until_complete(start())
    yield made
    loop.run_until_complete(made.close())


async def meet(pool: WorkerPool, session: WorkerSession, fate: str) -> None:
    """Have something happen to a session that must change nothing of it."""
    match fate:
        case "turn":
            await show(session, "extra = [t]")
        case "rollback":
            turn = await run(session, "t = kept = None\nheld.clear()\nimport os; os._exit(1)")
            assert turn.status is Status.ROLLED_BACK
        case "hibernate":
            await session.hibernate()
        case "fork and give up":
            assert session.checkpoint is not None
            session.checkpoint.fork().close()
        case "kill":
            (await pool.worker(session.owner)).kill()
        case "kill in a turn":
            process = await pool.worker(session.owner)
            asyncio.get_running_loop().call_later(0.05, process.kill)
            # It is run once more, in another worker, unless that ends it as well: either way nothing is half done.
            await run(session, "held.append(t)\nimport time; time.sleep(0.1)\nheld.pop()")


# Not shrunk: that takes minutes, as workers are killed and started in each.
@settings(
    max_examples=25,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
@given(
    made=st.lists(TEXTS, min_size=1, max_size=3),
    several=st.booleans(),
    steps=st.lists(st.tuples(FATE, st.lists(OPERATION, min_size=1, max_size=4)), min_size=1, max_size=5),
)
def test_mapped_and_native_strings_agree_whatever_happens(
    pool: WorkerPool,
    loop: asyncio.AbstractEventLoop,
    made: list[Made],
    several: bool,
    steps: list[tuple[str, list[str]]],
) -> None:
    contents = [one.text for one in made[: None if several else 1]]

    async def history() -> None:
        with in_memory(contents, Kind.DOCUMENTS if several else Kind.TEXT) as corpus:
            session = await pool.create("a", "core", Limits(turn_seconds=60.0))
            try:
                await session.attach("context", corpus)
                await show(session, "import re, json; number = 0; key = {}; held = []")
                for number, (fate, operations) in enumerate(steps):
                    at = number % len(contents)
                    named = f"t = context[{at}]" if several else "t = context"
                    await show(session, f"{named}; number = {at}; key = {{t: {at}}}; held = [number, key]")
                    await meet(pool, session, fate)
                    await show(session, f"assert held == [{at}, {{t: {at}}}] and t == {named.partition('= ')[2]}")
                    for operation in operations:
                        expected = ascii(eval(operation, {"t": contents[at], "re": re, "json": json}))
                        assert await show(session, f"print(ascii(({operation})))") == expected, operation
            finally:
                await session.close()

    loop.run_until_complete(history())
