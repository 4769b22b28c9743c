"""Fork, rollback and new sessions: independent states, and never the same random numbers twice."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.limits import MIB, Limits
from sandbox.turn import Status
from sandbox.vm.image import Loaded
from sandbox.vm.session import Session
from tests.sandbox.conftest import MakeText
from tests.sandbox.repl import Repl, Repls, memory_of

DRAWS = {
    "random": "__import__('random').random()",
    "randint": "__import__('random').getrandbits(64)",
    "SystemRandom": "__import__('random').SystemRandom().random()",
    "urandom": "__import__('os').urandom(16)",
    "uuid4": "__import__('uuid').uuid4()",
    "secrets": "__import__('secrets').token_hex()",
    "tempfile": "__import__('tempfile').mktemp()",
    "candidate names": "next(__import__('tempfile')._get_candidate_names())",
}
NUMPY_DRAWS = {
    "numpy global": "__import__('numpy').random.rand()",
    "numpy generator": "__import__('numpy').random.default_rng().random()",
    "pandas sample": "list(__import__('pandas').Series(range(10**6)).sample(5))",
}
ALL_DRAWS = [("core", draw) for draw in DRAWS.values()] + [("data", draw) for draw in NUMPY_DRAWS.values()]


@pytest.mark.parametrize(("image", "draw"), ALL_DRAWS, ids=[*DRAWS, *NUMPY_DRAWS])
def test_no_two_sessions_draw_the_same(start: Repls, text: MakeText, image: str, draw: str) -> None:
    origin = start(image, memory_bytes=256 * MIB)
    origin.show(draw)  # whatever is created at first use exists in the forks
    forks = [start.fork(origin) for _ in range(3)]
    fresh = [start(image, memory_bytes=256 * MIB) for _ in range(3)]
    attached = [start(image, memory_bytes=256 * MIB) for _ in range(2)]
    for repl in attached:
        repl.attach("context", text("some text"))
    drawn = [repl.show(draw) for repl in [origin, *forks, *fresh, *attached]]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("image", "draw"), ALL_DRAWS, ids=[*DRAWS, *NUMPY_DRAWS])
def test_a_rolled_back_turns_draws_are_not_drawn_again(start: Repls, image: str, draw: str) -> None:
    repl = start(image, memory_bytes=256 * MIB)
    repl.show(draw)
    stopped = repl.run(f"print(repr({draw}), flush=True)\nimport os; os._exit(0)")
    assert stopped.status is Status.ROLLED_BACK
    assert stopped.stdout != ""
    assert repl.show(draw) != stopped.stdout.strip()


def test_a_fork_goes_its_own_way(start: Repls) -> None:
    repl = start()
    repl.show("x = [1]\nf = open('/tmp/a', 'w+'); _ = f.write('both '); f.flush()")
    fork = start.fork(repl)
    repl.show("x.append(2); _ = f.write('first'); f.flush()")
    fork.show("x.append(3); _ = f.write('second'); f.flush()")
    assert repl.show("x, open('/tmp/a').read()") == "([1, 2], 'both first')"
    assert fork.show("x, open('/tmp/a').read()") == "([1, 3], 'both second')"


def test_a_fork_outlives_its_origin(start: Repls) -> None:
    repl = start()
    repl.show("x = 1")
    fork = start.fork(repl)
    repl.session.close()
    assert fork.show("x") == "1"


def test_a_fork_of_a_large_session_has_all_of_it(start: Repls) -> None:
    repl = start(memory_bytes=256 * MIB)
    repl.show("import hashlib\nx = bytes(range(256)) * 200_000\nhashlib.sha256(x).hexdigest()")
    fork = start.fork(repl)
    assert memory_of(fork) == memory_of(repl)
    assert fork.show("hashlib.sha256(x).hexdigest()") == repl.show("hashlib.sha256(x).hexdigest()")


def test_a_checkpoint_can_be_started_from_again_and_again(loaded: Loaded, start: Repls) -> None:
    repl = start()
    repl.show("x = 0")
    checkpoint = repl.session.checkpoint
    for _ in range(3):
        again = start.keep(Session(loaded.program, checkpoint.fork(), Limits()))
        assert again.show("x += 1; x") == "1"


def test_limits_of_a_fork_are_its_origins(start: Repls) -> None:
    fork = start.fork(start(file_bytes=100, door_calls=1))
    turn = fork.run("open('/tmp/a', 'wb', buffering=0).write(bytes(101))")
    assert turn.error is not None
    assert turn.error.type == "OSError"


def test_pages_a_session_has_not_touched_are_not_its_own(start: Repls) -> None:
    repl = start()
    assert repl.session.checkpoint.private_bytes == 0
    repl.show("1")
    assert repl.session.checkpoint.private_bytes > 0
    before = repl.session.checkpoint.private_bytes
    repl.show("x = b'x' * 10_000_000")
    assert repl.session.checkpoint.private_bytes > before + 10_000_000


@pytest.mark.parametrize(("image", "most"), [("core", 400_000), ("data", 600_000)])
def test_small_turns_write_to_few_pages_of_an_image(start: Repls, image: str, most: int) -> None:
    repl = start(image, memory_bytes=256 * MIB)
    repl.show("1+1")
    assert repl.session.checkpoint.private_bytes < most  # twice that where its objects' references are counted
    for _ in range(20):
        before = repl.session.checkpoint.private_bytes
        repl.show("1+1")
        assert repl.session.checkpoint.private_bytes - before < 100_000


class TestNeighbours:
    CANARY = "canary-7f3a9c51e8"

    def plant(self, repl: Repl) -> Any:
        half = len(self.CANARY) // 2
        return repl.show(
            f"secret = [{self.CANARY[:half]!r} + {self.CANARY[half:]!r} * 1] * 1\n"
            "blob = bytearray((secret[0] * 1000).encode())\nopen('/tmp/secret', 'w').write(secret[0])\nprint(secret[0])"
        )

    def test_nothing_of_one_session_is_in_anothers_memory(self, start: Repls) -> None:
        beside = start()
        beside.show("1")
        repl = start()
        self.plant(repl)
        assert self.CANARY.encode() in memory_of(repl)
        repl.run("import os; os._exit(0)")  # restoring must not leak either
        after = [start() for _ in range(3)]
        for other in [beside, *after]:
            assert other.show("len([bytes(1 << 16) for _ in range(100)])") == "100"
            assert self.CANARY.encode() not in memory_of(other)
            assert other.show("import os; os.listdir('/tmp')") == "[]"

    def test_nothing_of_a_closed_session_is_in_the_next_ones_memory(self, start: Repls) -> None:
        for _ in range(5):
            repl = start()
            assert self.CANARY.encode() not in memory_of(repl)
            self.plant(repl)
            repl.session.close()

    def test_memory_a_session_asks_for_is_zero(self, start: Repls) -> None:
        self.plant(start())
        assert start(memory_bytes=128 * MIB).show("bytes(50_000_000).count(0)") == "50000000"
