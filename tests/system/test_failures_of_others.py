"""What the reference implementation of RLMs gets wrong about money, and what holds here.

There a budget is looked at between iterations only, a child's cost is lost where the child fails, and children that run
at once are each given the whole remainder.
"""

from __future__ import annotations

from rlm.v1 import run_pb2, types_pb2

from rlm_server.broker.provider import Failure, ProviderError
from tests.servers import Served
from tests.system.books import check_settled, check_story, rows
from tests.system.stage import USD, Play, code

CAP = USD // 20
LONG = "x" * 8_000


async def test_one_block_of_code_cannot_spend_past_a_cap_of_five_cents(server: Served) -> None:
    """There one block spent $1.01 of $0.05, because nothing is checked while code runs."""
    block = code("for i in range(1000): llm_query(f'number {i}')")
    async with server(Play(block, sub=lambda prompt: LONG)) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=CAP))
        assert ended.run.state == run_pb2.RUN_STATE_EXHAUSTED
        assert CAP // 2 < ended.run.spent.nano_usd <= CAP
        (paid,) = rows(served.data_dir, "SELECT sum(actual_nano_usd) AS n FROM hold WHERE run = ?", ended.run.run_id)
        assert paid["n"] == ended.run.spent.nano_usd
        check_story(ended)
        check_settled(served.data_dir)


async def test_what_a_child_that_failed_has_cost_is_not_lost(server: Served) -> None:
    play = Play(
        code("try: rlm_query('spend')\nexcept RuntimeError as error: print(error)", "FINAL('done')"),
        sub=lambda prompt: LONG,
        spend=code("llm_query('one')", "llm_query('two')", "raise RuntimeError('and dies')"),
    )

    async def sub(prompt: str) -> str:
        if prompt == "two":
            raise ProviderError(Failure.GONE, "the provider failed", billed=True)
        return LONG

    play.sub = sub
    async with server(play, max_turns=2) as served:
        ended = await served.caller.ask()
        root, child = ended.nodes
        assert child.state != run_pb2.RUN_STATE_SUCCEEDED
        (paid,) = rows(served.data_dir, "SELECT sum(actual_nano_usd) AS n FROM hold WHERE node = ?", child.node_id)
        assert 0 < child.spent.nano_usd == paid["n"]
        assert ended.run.spent.nano_usd == root.spent.nano_usd > child.spent.nano_usd
        (account,) = rows(served.data_dir, "SELECT * FROM account WHERE parent IS NULL")
        assert account["posted_nano_usd"] == ended.run.spent.nano_usd
        check_story(ended)
        check_settled(served.data_dir)


async def test_twenty_children_at_once_share_one_remainder(server: Served) -> None:
    play = Play(
        code("print(rlm_query_batched(['spend'] * 20, [str(i) for i in range(20)]))", "FINAL('done')"),
        sub=lambda prompt: LONG,
        spend=code("for i in range(1000): llm_query(f'{context} {i}')"),
    )
    async with server(play, run_calls=64) as served:
        budget = 2 * USD
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=budget))
        promised = [child.budget.nano_usd for child in ended.bodies("child_started")]
        assert len(promised) == 20
        assert sum(promised) <= budget
        assert budget // 2 < ended.run.spent.nano_usd <= budget
        check_story(ended)
        check_settled(served.data_dir)
