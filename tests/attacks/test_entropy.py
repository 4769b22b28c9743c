"""Two sessions of one image, or one brought back, never draw the same secrets; what one leaves behind none can see."""

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack
from tests.attacks.conftest import CANARY, Place, run

DRAWS = {
    "os.urandom": "import os; os.urandom(16)",
    "random": "import random; random.random()",
    "secrets": "import secrets; secrets.token_hex()",
    "uuid": "import uuid; uuid.uuid4()",
    "temporary names": "import tempfile; tempfile.mktemp()",
    "numpy": "import numpy; numpy.random.random()",
    "numpy's new generators": "import numpy; numpy.random.default_rng().random()",
}
LIMITS = Attack("", "").bounds


@pytest.mark.asyncio(loop_scope="package")
@pytest.mark.parametrize("source", DRAWS)
async def test_every_session_and_every_restore_draws_its_own(place: Place, source: str) -> None:
    drawn = []
    for _ in range(2):
        session = await place.pool.create("attacker", "core", LIMITS)
        for again in range(2):
            turn = await run(session, DRAWS[source])
            assert turn.error is None, turn
            drawn.append(turn.stdout)
            if again == 0:
                await run(session, "import os; os._exit(1)")  # back to the checkpoint
        await session.close()
    assert len(set(drawn)) == 4


@pytest.mark.asyncio(loop_scope="package")
async def test_memory_of_sessions_before_cannot_be_found(place: Place) -> None:
    secret = CANARY[::-1] * 1000
    before = await place.pool.create("attacker", "core", LIMITS)
    await run(before, f"import os\nsecret = {secret!r}\n_ = open('/tmp/secret', 'w').write(secret)")
    await before.close()
    after = await place.pool.create("attacker", "core", LIMITS)
    found = await run(
        after, "import os, gc\nx = bytearray(40 << 20)\n"
        f"print(any(x), {CANARY[::-1][:9]!r} + {CANARY[::-1][9:]!r} in repr(gc.get_objects()), os.listdir('/tmp'))"
    )  # fmt: skip
    assert found.stdout == "False False []\n", found
    await after.close()


@pytest.mark.asyncio(loop_scope="package")
async def test_a_trap_in_one_session_leaves_another_that_waits_in_a_call_alone(place: Place) -> None:
    waiting, trapping = [await place.pool.create("attacker", "core", LIMITS) for _ in range(2)]

    async def answer(_: object) -> str:
        for code in ("import os; os._exit(1)", "import os; os.abort()", "bytearray(1 << 31)"):
            assert (await run(trapping, code)).error is not None
        return "answered"

    turn = await waiting.execute("import _door\n_door.call('a')", answer, lambda *_: None)
    assert turn.stdout == "'answered'\n", turn
    assert waiting._process is trapping._process
    for session in (waiting, trapping):
        await session.close()
