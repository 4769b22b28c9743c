"""No page of a list is above 1 MiB, and what does not fit comes on the next one."""

from __future__ import annotations

from rlm.v1 import run_pb2, types_pb2

from tests.servers import Served
from tests.system.stage import USD, Play, Said, code

MIB = 1 << 20


async def test_nodes_with_long_texts_come_on_several_pages_each_once_and_in_order(server: Served) -> None:
    ask = "rlm_query_batched([f'{number} ' + 'q' * 4_000 for number in range(150)])"
    play = Play(code(f"print({ask}[:2])", "FINAL('done')"))
    play.children = _Anything(code("FINAL('a' * 5_000)"))
    async with server(play, nodes=200, max_depth=1) as served:
        ended = await served.caller.ask(budget=types_pb2.Budget(nano_usd=50 * USD))
        request = run_pb2.ListNodesRequest(run_id=ended.run.run_id, page_size=1_000)
        seen, pages = [], 0
        while True:
            page = await served.caller.runs.ListNodes(request, metadata=served.caller.metadata)
            assert page.ByteSize() <= MIB
            seen += [node.node_id for node in page.nodes]
            pages += 1
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert ended.run.node_count == 151, ended.printed
        child = ended.nodes[1]
        assert (child.state, child.answer_size_bytes) == (run_pb2.RUN_STATE_SUCCEEDED, 5_000), child.end_message
        assert pages > 1
        assert len(seen) == len(set(seen)) == ended.run.node_count == 151
        assert seen[0] == ended.run.run_id


class _Anything(dict[str, Said]):
    """Says one line whatever a child is asked, and nothing to the root."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def get(self, question: str, default: object = None) -> object:  # type: ignore[override]
        return self._line if question != "What?" else default
