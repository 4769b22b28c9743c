"""A run as it happens, drawn from its events: on a terminal with a live footer, elsewhere as plain lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.text import Text
from rlm.v1 import run_pb2, session_pb2, types_pb2

from rlm_client.excerpt import Excerpt
from rlm_client.money import usd
from rlm_client.run_progress import ClosedTurn, NodeState, RunProgress, cost, spending
from rlm_client.sanitize import sanitize, sanitize_line

CODE_LINES = 24
"""Lines of one code block that are shown."""

_PLAIN_WIDTH = 160  # columns of a line where there is no terminal to say
_MAX_LIVE_LINES = 6
_SCRIPTED = "scripted model (test instrument; prices simulated)"
_STATE_STYLES = {"succeeded": "bold green", "failed": "bold red", "cancelled": "yellow", "exhausted": "bold yellow"}


def console_for(stream: TextIO) -> Console:
    """Make a console that writes control codes only to a terminal, and takes no text for markup."""
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        width=None if terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def state_name(state: run_pb2.RunState.ValueType) -> str:
    """Write a run's state as people do: `succeeded`."""
    return _words(run_pb2.RunState, state, "RUN_STATE_")


def stop_name(stop: session_pb2.StopReason.ValueType) -> str:
    """Write what stopped a turn: `TURN_TIME`."""
    return _words(session_pb2.StopReason, stop, "STOP_REASON_").upper()


@contextmanager
def upload_bar(console: Console, name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how far an upload is, on a terminal and if not `quiet`; gives the function to tell it."""
    bar = Progress(
        TextColumn("uploading {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal or console.is_dumb_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task(sanitize_line(name, 60), total=None)
        yield lambda received, size: bar.update(task, completed=received, total=size)


class Display:
    """Draws a run from its events alone, each given once and in order. A context manager around the whole of it.

    Text from models and guests is neutralised, cut to the width, and always follows an indentation or a gutter, so
    none of it can pass for a line of the display's own.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = RunProgress()
        self._lock = threading.Lock()  # the footer is drawn from another thread
        self._arrived = time.monotonic()
        self._spinner = Spinner("dots")
        self._excerpts: dict[str, Excerpt] = {}
        self._last_node = ""
        self._live = Live(
            get_renderable=self._footer,
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: run_pb2.RunEvent) -> None:
        """Draw one event. A kind of event this version does not know is passed over."""
        with self._lock:
            closed = self._progress.add(event)
            self._arrived = time.monotonic()
            node = self._progress.node(event)
        for turn in closed:
            self._line(turn.node, str(turn.calls), "cyan")
        match event.WhichOneof("body"):
            case "run_started" if not event.depth:
                self._run_started(event.run_started, node)
            case "strategy_chosen":
                choice = event.strategy_chosen
                how = "directly" if choice.strategy == run_pb2.STRATEGY_DIRECT else "by an RLM"
                self._in_node(event, node, _with(f"answered {how}", choice.reason), "dim")
            case "turn_started":
                limit = event.turn_started.max_turn_count
                self._header(event.node_id, node, f"turn {event.turn}" + (f" of {limit}" if limit else ""))
            case "model_replied":
                reply = event.model_replied
                summary = f"{sanitize_line(reply.model, 60)} replied · {cost(reply.spent.nano_usd)}"
                self._in_node(event, node, f"{summary} · {reply.spent.token_count:,} tokens", "dim")
            case "code_started":
                self._code(event, node)
            case "output":
                excerpt = self._excerpts.setdefault(event.node_id, Excerpt())
                self._output(event, node, excerpt.feed(event.output.stream, event.output.text))
            case "turn_restarted":
                self._excerpts.pop(event.node_id, None)  # what it printed is void, shown or not
                began = f"! the code began again, and its output so far is void: {event.turn_restarted.reason}"
                self._in_node(event, node, began, "yellow")
            case "node_resumed":
                self._excerpts.pop(event.node_id, None)
                self._in_node(event, node, f"! goes on: {event.node_resumed.reason}", "yellow")
            case "code_finished":
                self._code_finished(event, node)
            case "child_started" | "child_finished":
                self._child(event)
            case "budget_warning" | "guard":
                self._in_node(event, node, _warning(event), "yellow")
            case "answer" if not event.depth:
                whole = next((cut.size_bytes for cut in event.cut if cut.field == "text"), None)
                size = f"{len(event.answer.text):,} characters" if whole is None else f"{whole:,} bytes"
                self._in_node(event, node, f"answer of {size}", "green")
            case "run_finished" if not event.depth:
                self._run_finished(event.run_finished)
        if event.WhichOneof("body") not in (None, "output", "answer"):
            self._redacted(event, node)

    def _redacted(self, event: run_pb2.RunEvent, node: NodeState) -> None:
        """Say what of an event is not told, as the tenant's policy has it redacted."""
        hidden = [f"{cut.field} of {cut.size_bytes:,} bytes" for cut in event.cut if cut.redacted]
        if hidden:
            self._line(node, f"  redacted: {', '.join(hidden)}", "dim")

    def _run_started(self, started: run_pb2.RunStarted, node: NodeState) -> None:
        models = sanitize_line(started.model, 60)
        if started.sub_model and started.sub_model != started.model:
            models += f" · sub-model {sanitize_line(started.sub_model, 60)}"
        self._line(node, f"model {models} · context of {started.context_character_count:,} characters", "bold")
        if started.model.startswith("scripted") or started.sub_model.startswith("scripted"):
            self._line(node, _SCRIPTED, "bold magenta")

    def _code(self, event: run_pb2.RunEvent, node: NodeState) -> None:
        self._in_node(event, node, f"code {event.code_started.block}", "dim")
        if not event.code_started.code:
            return
        lines = sanitize(event.code_started.code).strip("\n").split("\n")
        shown = "\n".join(sanitize_line(line) for line in lines[:CODE_LINES])
        highlight = Syntax("", "python", theme="ansi_dark", background_color="default").highlight
        for line in highlight(shown).split("\n")[: len(lines)]:
            self._print(_indent(node).append("  ▏ ", style="dim").append_text(line))
        if len(lines) > CODE_LINES:
            self._line(node, f"  … {len(lines) - CODE_LINES:,} more lines", "dim")

    def _output(self, event: run_pb2.RunEvent, node: NodeState, lines: list[tuple[int, str]]) -> None:
        for stream, line in lines:
            style = "yellow" if stream == session_pb2.OUTPUT_STREAM_STDERR else "dim" if not stream else ""
            self._in_node(event, node, f"  ┃ {line}", style)

    def _code_finished(self, event: run_pb2.RunEvent, node: NodeState) -> None:
        excerpt = self._excerpts.pop(event.node_id, None)
        if excerpt is not None:
            self._output(event, node, excerpt.finish())
        result = event.code_finished.result
        if result.truncated:
            self._in_node(event, node, f"  output of {result.output_bytes:,} bytes, cut by the server", "dim")
        if result.status != session_pb2.TURN_STATUS_OK:
            undone = "rolled back: " if result.status == session_pb2.TURN_STATUS_ROLLED_BACK else ""
            kind = result.error.type or stop_name(result.stop_reason)
            self._in_node(event, node, f"  ✗ {undone}{_with(kind, result.error.message)}", "red")

    def _child(self, event: run_pb2.RunEvent) -> None:
        if event.WhichOneof("body") == "child_started":
            started = event.child_started
            child = self._progress.nodes[started.child_id]
            self._last_node = started.child_id
            size = f"{started.context_character_count:,} characters"
            line = _with(f"child {child.label} · {size}", started.question)
            self._line(child, line, "bold blue", branch="├─ ")
            return
        finished = event.child_finished
        child = self._progress.nodes.get(finished.child_id) or NodeState(finished.child_id, event.depth + 1)
        state = state_name(finished.state)
        summary = (
            f"child {child.label} {state} · {cost(finished.spent.nano_usd)} · {finished.spent.token_count:,} tokens"
        )
        reason = f" · {finished.end_message}" if finished.end_message else ""
        self._last_node = ""
        self._line(child, summary + reason, _STATE_STYLES.get(state, ""), branch="└─ ")

    def _run_finished(self, finished: run_pb2.RunFinished) -> None:
        state, progress = state_name(finished.state), self._progress
        spent = spending(finished.spent, progress.budget)
        ended = f" · {spent} · depth {progress.deepest} · {progress.elapsed_seconds:.1f} s"
        line = Text().append(state, style=_STATE_STYLES.get(state, "")).append(ended)
        self._console.print(line)
        if finished.end_message:
            # Wrapped, as a reason says what to do; the padding keeps its later lines from the edge.
            self._console.print(Padding(Text(sanitize_line(finished.end_message, 2000)), (0, 0, 0, 2)))

    def _header(self, node_id: str, node: NodeState, title: str) -> None:
        self._last_node = node_id
        who = f"child {node.label} · " if node.label else ""
        self._line(node, f"─ {who}{title}", "bold")

    def _in_node(self, event: run_pb2.RunEvent, node: NodeState, text: str, style: str) -> None:
        """Print a line of a node, after a header where the line before was another node's."""
        if self._last_node != event.node_id:
            self._header(event.node_id, node, f"turn {node.turn}, going on")
        self._line(node, text, style)

    def _line(self, node: NodeState, text: str, style: str, branch: str = "") -> None:
        self._print(_indent(node, branch).append(sanitize_line(text), style=style))

    def _print(self, line: Text) -> None:
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def _footer(self) -> Group:
        with self._lock:
            open_turns = [_live_line(turn) for turn in self._progress.open_turns()]
            spent = spending(self._progress.spent, self._progress.budget)
            elapsed = self._progress.elapsed_seconds + time.monotonic() - self._arrived
            since = f" since event {self._progress.first_sequence}" if self._progress.first_sequence > 1 else ""
        more = len(open_turns) - _MAX_LIVE_LINES
        lines = open_turns[:_MAX_LIVE_LINES] + ([Text(f"… and {more} more turns", style="dim")] if more > 0 else [])
        self._spinner.update(text=Text(f"{spent}{since} · {elapsed:.0f} s", no_wrap=True, overflow="ellipsis"))
        return Group(*lines, self._spinner)


def _indent(node: NodeState, branch: str = "") -> Text:
    depth = min(node.depth, 20)
    return Text().append("│  " * (depth - 1) + branch if branch else "│  " * depth, style="dim")


def _live_line(turn: ClosedTurn) -> Text:
    who = f"child {sanitize_line(turn.node.label, 40)} " if turn.node.label else ""
    return Text(f"{who}turn {turn.node.turn}: {turn.calls}", style="cyan", no_wrap=True, overflow="ellipsis")


def _warning(event: run_pb2.RunEvent) -> str:
    if event.WhichOneof("body") == "guard":
        kind = _words(run_pb2.GuardKind, event.guard.kind, "GUARD_KIND_")
        return _with(f"! guard {kind}", event.guard.detail)
    warned = event.budget_warning
    if warned.unit == types_pb2.BUDGET_UNIT_NANO_USD:
        return f"! budget: {warned.percent} % of the money is spent ({usd(warned.spent)} of {usd(warned.limit)})"
    unit = _words(types_pb2.BudgetUnit, warned.unit, "BUDGET_UNIT_")
    return f"! budget: {warned.percent} % of the {unit} are spent ({warned.spent:,} of {warned.limit:,})"


def _with(what: str, words: str) -> str:
    """Write what something is, and what is said of it, where that is told."""
    return f"{what}: {words}" if words else what


def _words(kind: Any, value: int, prefix: str) -> str:
    """Write a value of an enum as people do; one that this version does not know as its number."""
    return str(kind.Name(value)).removeprefix(prefix).lower() if value in kind.values() else str(value)
