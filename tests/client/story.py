"""The events of one small run, as a server tells them."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from rlm.v1 import run_pb2, session_pb2, types_pb2

CENT = 10_000_000
"""Nano-US-dollars in one cent."""

OK = session_pb2.TurnResult(status=session_pb2.TURN_STATUS_OK)


class Story:
    """Collects events, numbering them and advancing the clock by a second each."""

    def __init__(self, first: int = 1) -> None:
        self.events: list[run_pb2.RunEvent] = []
        self._first = first

    def tell(self, node: str = "root", parent: str = "", depth: int = 0, turn: int = 1, **body: object) -> Story:
        number = self._first + len(self.events)
        event = run_pb2.RunEvent(
            sequence=number,
            time=Timestamp(seconds=1000 + number),
            node_id=node,
            parent_id=parent,
            depth=depth,
            turn=turn,
            **body,  # type: ignore[arg-type]
        )
        self.events.append(event)
        return self


def money(cents: int, tokens: int = 0, calls: int = 0) -> types_pb2.Amounts:
    return types_pb2.Amounts(nano_usd=cents * CENT, token_count=tokens, call_count=calls)


def printed(text: str, stream: session_pb2.OutputStream.ValueType = session_pb2.OUTPUT_STREAM_STDOUT) -> Story:
    """Tell a run whose code printed a text."""
    output = session_pb2.Output(stream=stream, text=text)
    return (
        Story()
        .tell(turn=0, run_started=run_pb2.RunStarted(model="m"))
        .tell(turn_started=run_pb2.TurnStarted(max_turn_count=5))
        .tell(code_started=run_pb2.CodeStarted(code="print(x)", block=1))
        .tell(output=output)
        .tell(code_finished=run_pb2.CodeFinished(result=OK))
    )


def small_run() -> Story:
    """Tell a run with one child, three sub-calls, a warning and an answer; it spends 6 cents of 50."""
    started = run_pb2.RunStarted(
        question="How many?",
        model="big",
        sub_model="small",
        context_character_count=1_234_567,
        budget=types_pb2.Budget(nano_usd=50 * CENT),
    )
    story = (
        Story()
        .tell(turn=0, run_started=started)
        .tell(turn_started=run_pb2.TurnStarted(max_turn_count=20))
        .tell(model_replied=run_pb2.ModelReplied(model="big", text="…", spent=money(2, 1000, 1)))
        .tell(code_started=run_pb2.CodeStarted(code="for part in parts:\n    llm_query(part)", block=1))
    )
    for call_id in ("a", "b"):
        story.tell(call_started=run_pb2.CallStarted(call_id=call_id, model="small", prompt_character_count=10))
    for call_id in ("a", "b"):
        call = session_pb2.ModelCallFinished(call_id=call_id, model="small", spent=money(1, 100, 1))
        story.tell(call_finished=run_pb2.CallFinished(call=call, reply_character_count=5))
    story.tell(child_started=run_pb2.ChildStarted(child_id="kid", question="And here?", context_character_count=500))
    story.tell("kid", "root", 1, 1, turn_started=run_pb2.TurnStarted(max_turn_count=20))
    replied = run_pb2.ModelReplied(model="small", text="…", spent=money(2, 200, 1))
    return (
        story.tell("kid", "root", 1, 1, model_replied=replied)
        .tell(
            child_finished=run_pb2.ChildFinished(
                child_id="kid", state=run_pb2.RUN_STATE_SUCCEEDED, spent=money(2, 200, 1)
            )
        )
        .tell(
            budget_warning=run_pb2.BudgetWarning(
                unit=types_pb2.BUDGET_UNIT_NANO_USD, percent=80, spent=40 * CENT, limit=50 * CENT
            )
        )
        .tell(guard=run_pb2.Guard(kind=run_pb2.GUARD_KIND_REPEATED, detail="the same code again"))
        .tell(code_finished=run_pb2.CodeFinished(result=OK))
        .tell(turn_checkpointed=run_pb2.TurnCheckpointed(private_bytes=65536))
        .tell(answer=run_pb2.Answer(text="42"))
        .tell(turn=0, run_finished=run_pb2.RunFinished(state=run_pb2.RUN_STATE_SUCCEEDED, spent=money(6, 1400, 4)))
    )
