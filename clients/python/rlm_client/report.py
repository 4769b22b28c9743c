"""A run as it is now: its state, its tree and what it spent, as one printed report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree
from rlm.v1 import run_pb2

from rlm_client.display import state_name
from rlm_client.run_progress import cost, spending
from rlm_client.sanitize import sanitize, sanitize_line


def print_report(console: Console, run: run_pb2.Run, nodes: Sequence[run_pb2.Node], answer: str) -> None:
    """Print a run: what was asked, how it stands, the nodes of its tree, and its whole answer under a gutter."""
    console.print(Text(f"run {sanitize_line(run.run_id)} {state_name(run.state)}", style="bold"))
    _wrapped(console, "question", _question(run))
    models = run.model if run.sub_model in ("", run.model) else f"{run.model} · sub-model {run.sub_model}"
    _wrapped(console, "model", models)
    if run.end_message:
        _wrapped(console, "reason", run.end_message)
    depth = max((node.depth for node in nodes), default=0)
    _wrapped(console, "spent", f"{spending(run.spent, run.budget)} · depth {depth}{_elapsed(run)}")
    if run.pending.nano_usd:
        _wrapped(console, "pending", cost(run.pending.nano_usd))
    if len(nodes) > 1:
        console.print(_tree(nodes))
    if answer:
        console.print("answer")
        room = max(console.width - 4, 1)
        for line in sanitize(answer).split("\n"):
            # Wrapped by hand, so that every line of it stands behind the gutter.
            for part in Text(line).wrap(console, room, overflow="fold") or [Text()]:
                console.print(Text("  ┃ ").append_text(part), no_wrap=True)


def _question(of: run_pb2.Run | run_pb2.Node) -> str:
    """Give a question, or say that it is redacted."""
    size = next((cut.size_bytes for cut in of.cut if cut.field == "question" and cut.redacted), None)
    return of.question if size is None else f"({size:,} bytes, redacted)"


def _wrapped(console: Console, name: str, text: str) -> None:
    console.print(Padding(Text(f"{name}: {sanitize_line(text, 2000)}"), (0, 0, 0, 2)))


def _elapsed(run: run_pb2.Run) -> str:
    if not run.HasField("end_time"):
        return ""
    seconds = run.end_time.ToDatetime() - run.create_time.ToDatetime()
    return f" · {seconds.total_seconds():.1f} s"


def _tree(nodes: Iterable[run_pb2.Node]) -> Tree:
    branches: dict[str, Tree] = {}
    root = Tree(Text("tree"))
    for node in nodes:
        parent = branches.get(node.parent_id, root)
        said = f"{state_name(node.state)} · {node.turn_count} turns · {cost(node.spent.nano_usd)} · "
        label = Text(said + sanitize_line(_question(node), 200), no_wrap=True, overflow="ellipsis")
        branches[node.node_id] = parent.add(label)
    return root
