"""Answers are remembered in bounded memory, the oldest are forgotten, and nothing is left of a turn that is over."""

from __future__ import annotations

import asyncio

import pytest

from rlm_server.repl.memo import CachedAnswer, Memo
from rlm_server.shares.held import Held

TENANT = "acme"


def answer(size: int = 1_000) -> CachedAnswer:
    return CachedAnswer("x" * size, "small")


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def known(memo: Memo, count: int) -> list[int]:
    return [number for number in range(count) if memo.get(key(number)) is not None]


def test_the_oldest_answers_are_forgotten_where_more_would_not_fit() -> None:
    held = Held(lambda _: 1 << 30)
    memo = Memo(TENANT, 3 * answer().size, held)
    for number in range(10):
        memo.put(key(number), answer())
    assert known(memo, 10) == [7, 8, 9]
    assert held.of(TENANT) == memo.size == 3 * answer().size
    memo.put(key(10), answer(2_500))
    assert known(memo, 11) == [9, 10], "a long one takes the room of several"
    memo.close()
    assert (held.of(TENANT), memo.size, known(memo, 11)) == (0, 0, [])


def test_an_answer_that_never_fits_is_not_kept_and_costs_no_other() -> None:
    held = Held(lambda _: 1 << 30)
    memo = Memo(TENANT, 3 * answer().size, held)
    memo.put(key(0), answer())
    memo.put(key(1), answer(100_000))
    assert known(memo, 2) == [0]


def test_where_the_tenant_may_have_no_more_memory_its_own_oldest_answers_go() -> None:
    held = Held(lambda _: 4 * answer().size)
    one, other = (Memo(TENANT, 1 << 30, held) for _ in range(2))
    for number in range(2):
        one.put(key(number), answer())
    for number in range(5):
        other.put(key(number), answer())
    assert (known(one, 5), known(other, 5)) == ([0, 1], [3, 4])
    one.close()
    other.close()
    assert held.of(TENANT) == 0


def test_an_answer_that_is_known_is_not_counted_twice() -> None:
    held = Held(lambda _: 1 << 30)
    memo = Memo(TENANT, 1 << 30, held)
    for _ in range(3):
        memo.put(key(0), answer())
    assert held.of(TENANT) == memo.size == answer().size


async def test_nothing_is_left_of_a_turn_that_nobody_waits_for() -> None:
    memo = Memo(TENANT, 1 << 20, Held(lambda _: 1 << 30))

    async def take(number: int) -> None:
        async with memo.turn(key(number % 7)):
            await asyncio.sleep(0)

    await asyncio.gather(*(take(number) for number in range(100)))
    async with memo.turn(key(0)):
        waiting = asyncio.create_task(take(0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert memo._turns == {}
