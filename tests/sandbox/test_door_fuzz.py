"""Requests that a grammar makes, true and false: each is answered or refused, and the host is none the worse.

`RLM_FUZZ_CASES` says how many; `RLM_FUZZ_SEED` from which number on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_server.repl.functions import FUNCTIONS
from rlm_server.repl.search_call import answer_search
from rlm_server.runs.child_context import ChildContexts, child_context
from rlm_server.runs.node_context import NodeContext
from rlm_server.shares.shares import Shares
from rlm_server.shares.threads import Threads
from sandbox.bounded_json import NODE_BYTES, WIDEST
from sandbox.corpora.corpus import Corpus, Kind, in_memory
from sandbox.door import MAX_HEAD, MAX_OP, HostCall, Json
from sandbox.limits import Limits
from sandbox.pool.fair_clock import FairClock
from sandbox.pool.held import Held
from sandbox.pool.worker_turn import WorkerTurn
from sandbox.vm.guest_door import OWN
from sandbox.wire.frames import Frame
from sandbox.wire.frames import Kind as FrameKind

CASES = int(os.environ.get("RLM_FUZZ_CASES", "2000"))
SEED = int(os.environ.get("RLM_FUZZ_SEED", "1"))
TRACED = 40
"""Of so many cases, the memory of one is looked at: that takes long."""

LIMITS = Limits(frame_nodes=2_000, frame_bytes=4 << 20, door_calls=10**6, door_bytes=1 << 60, door_waiting=10_000)
OPS = [*(entry.op for entry in FUNCTIONS.entries), *OWN, "sandbox.report", "sandbox.map", "no such thing", "__class__"]
TAKEN = {**{entry.op: entry.arguments for entry in FUNCTIONS.entries}, **OWN}
NAMES = sorted({name for taken in TAKEN.values() for name in taken} | {"later", "op", "", "x", "__init__", "self"})

SCALARS = [
    "null", "true", "false", "0", "1", "-1", "7", "100", "0.5", "1e3", "4294967295", "4294967296", "-0", "1e9", "1e10",
    '""', '"a"', '"(a+)+"', '"["', '"\\\\"', '"\\""', '"[[[{{,,::"', '"\\u0000"', '"\\ud83d\\ude00"', '"é中\U0001f600"',
]  # fmt: skip
ODD = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "1.", ".5", "+1", "0x1", "1e", "9" * 65, "9" * 5000,
    "0." + "1" * 100, '"\\ud800"', '"\\udfff\\ud800"', '"\\x"', '"\\u12"', '"\\', '"', '"\n"', '"\0"', "'a'",
    "nul", "tru", "\ufeff1",
    "[", "]", "{", "}", ",", ":", "[1,]", "[,1]", "{,}", '{"a"}', '{"a":}', "{1:2}", "[1 2]", "//", "\x7f",
]  # fmt: skip


class Grammar:
    """Makes requests from random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.texts: list[bytes] = []

    def request(self) -> bytes:
        """Make one: mostly well-formed, with arguments of the op's own, and then perhaps something wrong with it."""
        chance = self.random.random
        self.texts = []
        op = self.random.choice(OPS) if chance() < 0.95 else "x" * self.random.choice([MAX_OP, MAX_OP + 1, 100_000])
        pairs = [(name, self.argument(name, kind.wanted)) for name, kind in TAKEN.get(op, {}).items()]
        if chance() < 0.2 and pairs:
            pairs.pop(self.random.randrange(len(pairs)))
        while chance() < 0.2:
            pairs.append((self.random.choice(NAMES), self.value(0)))
        if chance() < 0.97:
            pairs.insert(0, ("op", json.dumps(op)))
        if chance() < 0.1:
            pairs.append(("later", self.random.choice(["true", "false", "1"])))
        if chance() < 0.1:
            self.random.shuffle(pairs)
        head = "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs) + "}"
        return self.spoilt(self.framed(head.encode("utf-8", "surrogatepass")))

    def junk(self, below: int) -> bytes:
        """Make fewer than so many bytes."""
        return bytes(self.random.choices(range(256), k=self.random.randrange(below)))

    def framed(self, head: bytes) -> bytes:
        """Put the texts behind the head, or something else."""
        choice = self.random.random()
        if choice < 0.8:
            return head + b"\0" + b"".join(self.texts) if self.texts else head
        if choice < 0.85:
            return head + b"\0" + b"".join(self.texts[1:])
        if choice < 0.9:
            return head + b"\0" + b"".join(self.texts) + self.junk(9)
        if choice < 0.95:
            return head + b"\0" * self.random.randrange(1, 4) + b"".join(reversed(self.texts))
        return head + b"".join(self.texts)

    def spoilt(self, frame: bytes) -> bytes:
        """Change some bytes, or cut it, or repeat it."""
        choice = self.random.random()
        if choice < 0.75 or not frame:
            return frame
        at = self.random.randrange(len(frame))
        if choice < 0.9:
            return frame[:at] + self.junk(4) + frame[at + self.random.randrange(4) :]
        return frame[:at] if choice < 0.95 else frame + frame

    def argument(self, name: str, wanted: str) -> str:
        """Make an argument of the kind that is wanted, or of another."""
        if self.random.random() < 0.15:
            return self.value(0)
        if wanted == "a str":
            return self.text()
        if wanted == "a list of str":
            return "[" + ",".join(self.text() for _ in range(self.random.choice([0, 1, 2, 5, 300, 1500]))) + "]"
        if wanted == "a list":
            if name == "part" and self.random.random() < 0.6:
                return self.random.choice(["[0,3,1]", "[2,-1,-1]", "[0,999,1]", "[0,3,0]", "[0,1]", "[0,9e9,1]"])
            if name == "contexts" and self.random.random() < 0.6:
                return "[" + ",".join(self.part() for _ in range(self.random.randrange(3))) + "]"
            return "[" + ",".join(self.random.choice(SCALARS) for _ in range(self.random.randrange(4))) + "]"
        return self.random.choice(SCALARS if wanted != "a bool" else ["true", "false"])

    def part(self) -> str:
        """Make what is given to a child: a text, texts, or a part of the context."""

        def number() -> str:
            return self.random.choice(["0", "1", "2", "-1", "99", "null", "1.5", "true", "9" * 30])

        makers: list[Callable[[], str]] = [
            self.text,
            lambda: f"[{self.text()},{self.text()}]",
            lambda: f'{{"corpus":{number()},"documents":[{number()},{number()},{number()}]}}',
            lambda: f'{{"corpus":0,"document":{number()},"start":{number()},"end":{number()}}}',
            lambda: self.value(0),
        ]
        return self.random.choice(makers)()

    def text(self) -> str:
        """Make a text, in the head or behind it."""
        letters = self.random.choice(["a", "é", "中", "\U0001f600", "[{,:", '"', "\\", "\0", "\n"])
        text = letters * self.random.choice([0, 1, 3, 30, 300])
        if self.random.random() < 0.002:
            text *= 3_000
        if self.random.random() < 0.6:
            return json.dumps(text, ensure_ascii=self.random.random() < 0.5)
        encoded = text.encode()
        if self.random.random() < 0.02:
            encoded = self.random.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", encoded[:-1]])
        self.texts.append(encoded)
        size = (
            len(encoded) if self.random.random() < 0.97 else self.random.choice([-1, 0, len(encoded) + 1, 10**30, 1.5])
        )
        return f'{{"":{size}}}'

    def value(self, depth: int) -> str:
        """Make any value, well-formed or not."""
        choice = self.random.random()
        if choice < 0.03:
            return self.many()
        if choice < 0.1:
            return self.random.choice(ODD)
        if choice < 0.6 or depth > 5:
            return self.random.choice(SCALARS) if choice < 0.5 else self.text()
        inner = [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if choice < 0.8:
            return "[" + ",".join(inner) + "]"
        return "{" + ",".join(f"{json.dumps(self.random.choice(NAMES))}:{one}" for one in inner) + "}"

    def many(self) -> str:
        """Make a value that is deep, wide or long."""
        count = self.random.choice(
            [31, 32, 33, 99, 101, 1_999, 2_001, 20_000, 200_000 if self.random.random() < 0.1 else 5]
        )
        makers: list[Callable[[], str]] = [
            lambda: "[" * count + "]" * count,
            lambda: '{"a":' * count + "1" + "}" * count,
            lambda: "[" * count,
            lambda: "]" * count,
            lambda: "[" + ",".join(["[]"] * count) + "]",
            lambda: "[" + ",".join(["{}"] * count) + "]",
            lambda: "[" + ",".join(['""'] * count) + "]",
            lambda: "[" + ",".join(["1"] * count) + "]",
            lambda: "{" + ",".join(f'"{n}":1' for n in range(count)) + "}",
            lambda: "{" + ",".join(['"a":1'] * count) + "}",
            lambda: '"' + "[{,:" * count + '"',
            lambda: '"' + '\\"' * count,
            lambda: '"' + "\\" * count,
            lambda: "9" * count,
            lambda: "0." + "9" * count,
            lambda: "1e" + "9" * count,
            lambda: "[" + ",".join(['{"":0}'] * count) + "]",
            lambda: " " * count + "1",
        ]
        return self.random.choice(makers)()


class Host:
    """Answers what is asked: with the real handlers where they need no server, else with what was asked."""

    def __init__(self, corpus: Corpus, threads: Threads) -> None:
        self.threads = threads
        self.context = NodeContext(corpus)
        self.contexts = ChildContexts(replace(Shares.of(), threads=threads), "tenant")
        self.session: Any = SimpleNamespace(corpora=(corpus,), saw=lambda _: None)
        self.answered = 0

    async def answer(self, call: HostCall) -> Json:
        if call.op in TAKEN:
            call.check(TAKEN[call.op])
        self.answered += 1
        if call.op == "search":
            return await answer_search(self.session, call, "tenant", self.threads)
        if call.op == "rlm_query":
            for context in call.items("contexts"):
                async with self.contexts.opened(child_context(context, self.context)) as node_context:
                    assert node_context.corpus.characters >= 0
        return {"op": call.op, "arguments": call.arguments}


class Worker:
    """What a turn needs of its worker. It keeps the replies."""

    unsent = 0

    def __init__(self) -> None:
        self.held, self.clock = Held(), FairClock(1)
        self.turns: set[object] = set()
        self.replies: dict[int, bytes] = {}
        self.heard: Callable[[Frame | None], None]

    def follow(self, session: int, listener: Callable[[Frame | None], None]) -> None:
        self.heard = listener

    def unfollow(self, session: int) -> None:
        pass

    def send(self, frame: Frame) -> None:
        assert frame.number not in self.replies
        self.replies[frame.number] = frame.data


@pytest.fixture
def host() -> Iterator[Host]:
    with in_memory(["one", "zwei é", "三" * 5000], Kind.DOCUMENTS) as corpus:
        threads = Threads()
        yield Host(corpus, threads)
        threads.close()


async def test_every_request_is_answered_or_refused(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    worker: Any = Worker()
    turn = WorkerTurn(1, 1, LIMITS, host.answer, lambda *_: None)
    running = asyncio.create_task(turn.run(worker, lambda _, number: Frame(FrameKind.EXECUTE, 1, turn=number)))
    await asyncio.sleep(0)
    for case in range(1, CASES + 1):
        frame = Grammar(SEED + case).request()[: LIMITS.frame_bytes]
        traced = case % TRACED == 0
        if traced:
            tracemalloc.start()
        worker.heard(Frame(FrameKind.CALL, 1, case, data=frame, turn=1))
        while turn._answering:
            await asyncio.wait([*turn._answering], timeout=60)
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            most = 12 * len(frame) + (1 + WIDEST) * min(len(frame), MAX_HEAD) + 4 * NODE_BYTES * LIMITS.frame_nodes
            assert peak < most + (2 << 20), (SEED + case, peak, most)
        reply = json.loads(worker.replies.pop(case))
        if "error" in reply:
            assert set(reply) == {"error"}
            assert set(reply["error"]) == {"type", "message"}
            assert len(reply["error"]["message"]) < 2_500, SEED + case
            assert "fault of the server's" not in reply["error"]["message"], SEED + case
        else:
            assert set(reply) == {"ok"}
        assert not caplog.records, SEED + case
    assert worker.held.bytes == 0
    assert host.answered > CASES // 10, "most of it was refused: the grammar tries too little"
    worker.heard(Frame(FrameKind.DONE, 1, turn=1))
    await running
