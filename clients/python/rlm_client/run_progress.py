"""The progress of a run, added up from its events: its tree, what it spent, and the calls of the turns under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlm.v1 import run_pb2, session_pb2, types_pb2

from rlm_client.money import usd

_TEN_THOUSANDTH = 100_000  # nano-dollars in $0.0001


def cost(nano: int) -> str:
    """Write nano-US-dollars briefly, to four decimals. An amount too small for these is not shown as zero."""
    if 0 < nano < _TEN_THOUSANDTH:
        return "<$0.0001"
    return f"${nano // 1_000_000_000:,}.{nano % 1_000_000_000 // _TEN_THOUSANDTH:04d}"


def spending(spent: types_pb2.Amounts, budget: types_pb2.Budget) -> str:
    """Write what was spent in money, tokens and calls, each against its limit where it has one."""
    money = cost(spent.nano_usd) + (f" of {usd(budget.nano_usd)}" if budget.HasField("nano_usd") else "")
    tokens = f"{spent.token_count:,}" + (f" of {budget.token_count:,}" if budget.HasField("token_count") else "")
    calls = f"{spent.call_count:,}" + (f" of {budget.call_count:,}" if budget.HasField("call_count") else "")
    return f"{money} · {tokens} tokens · {calls} calls"


@dataclass(slots=True)
class Calls:
    """The sub-model calls of one turn."""

    started: int = 0
    finished: int = 0
    memo: int = 0
    failed: int = 0
    nano_usd: int = 0

    def add(self, call: session_pb2.ModelCallFinished) -> None:
        """Count a finished call."""
        self.finished += 1
        self.memo += call.memo
        self.failed += bool(call.error)
        self.nano_usd += call.spent.nano_usd

    def add_untold(self, calls: session_pb2.UntoldCalls) -> None:
        """Count calls that were not told by themselves."""
        self.finished += calls.from_memory_count + calls.failed_count
        self.memo += calls.from_memory_count
        self.failed += calls.failed_count

    def __str__(self) -> str:
        parts = [f"llm_query ×{max(self.started, self.finished)}", f"{self.finished} done"]  # noqa: RUF001 - a times sign
        if self.memo:
            parts.append(f"{self.memo} from memo")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return " · ".join([*parts, cost(self.nano_usd)])


@dataclass(slots=True)
class NodeState:
    """One RLM of the tree. `label` is empty for the root, `1.2` for the second child of its first child."""

    label: str
    depth: int
    turn: int = 0
    children: int = 0
    calls: Calls | None = None


@dataclass(frozen=True, slots=True)
class ClosedTurn:
    """The calls of a turn that is over."""

    node: NodeState
    calls: Calls


@dataclass(slots=True)
class RunProgress:
    """Everything known of a run from its events so far. `spent` is only what the events seen account for."""

    nodes: dict[str, NodeState] = field(default_factory=dict)
    spent: types_pb2.Amounts = field(default_factory=types_pb2.Amounts)
    budget: types_pb2.Budget = field(default_factory=types_pb2.Budget)
    first_sequence: int = 0
    deepest: int = 0
    started_seconds: float = 0.0
    newest_seconds: float = 0.0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds between the first and the newest event seen, by the server's clock."""
        return max(self.newest_seconds - self.started_seconds, 0.0)

    def node(self, event: run_pb2.RunEvent) -> NodeState:
        """Give the node in which an event happened. A node whose start was not seen is named by its id."""
        if event.node_id not in self.nodes:
            self.nodes[event.node_id] = NodeState(event.node_id if event.depth else "", event.depth)
        return self.nodes[event.node_id]

    def add(self, event: run_pb2.RunEvent) -> list[ClosedTurn]:
        """Count an event, and give the calls of the turns it ended."""
        seconds = event.time.seconds + event.time.nanos / 1e9
        if not self.first_sequence:
            self.first_sequence, self.started_seconds = event.sequence, seconds
        self.newest_seconds = max(self.newest_seconds, seconds)
        node = self.node(event)
        self.deepest = max(self.deepest, event.depth)
        closed = self._close(event, node)
        node.turn = event.turn or node.turn
        match event.WhichOneof("body"):
            case "run_started":
                self.budget.CopyFrom(event.run_started.budget)
            case "model_replied":
                self._spend(event.model_replied.spent)
            case "call_started":
                node.calls = node.calls or Calls()
                node.calls.started += 1
            case "call_finished":
                self._spend(event.call_finished.call.spent)
                if node.calls is not None:
                    node.calls.add(event.call_finished.call)
            case "code_finished" if node.calls is not None:
                node.calls.add_untold(event.code_finished.untold)
            case "child_started":
                self._add_child(event.child_started.child_id, node)
            case "run_finished" if not event.depth:
                self.spent.CopyFrom(event.run_finished.spent)
        return closed

    def open_turns(self) -> list[ClosedTurn]:
        """Give the calls of the turns still going on."""
        return [ClosedTurn(node, node.calls) for node in self.nodes.values() if node.calls is not None]

    def _close(self, event: run_pb2.RunEvent, node: NodeState) -> list[ClosedTurn]:
        match event.WhichOneof("body"):
            case "turn_started" | "turn_checkpointed":
                ending = [node]
            case "child_finished":
                child = self.nodes.get(event.child_finished.child_id)
                ending = [child] if child is not None else []
            case "run_finished" if not event.depth:
                ending = list(self.nodes.values())
            case _:
                ending = []
        closed = [ClosedTurn(one, one.calls) for one in ending if one.calls is not None]
        for one in ending:
            one.calls = None
        return closed

    def _add_child(self, child_id: str, parent: NodeState) -> None:
        parent.children += 1
        label = f"{parent.label}.{parent.children}" if parent.label else str(parent.children)
        self.nodes[child_id] = NodeState(label, parent.depth + 1)
        self.deepest = max(self.deepest, parent.depth + 1)

    def _spend(self, spent: types_pb2.Amounts) -> None:
        self.spent.nano_usd += spent.nano_usd
        self.spent.token_count += spent.token_count
        self.spent.call_count += spent.call_count
