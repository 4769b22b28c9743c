"""Use the REPL without the loop: variables that stay, an error, a model call, and a turn that is stopped and undone.

Start a server with `make serve`, and in another terminal:

    .venv/bin/python examples/repl_session.py
"""

from __future__ import annotations

from rlm.v1.session_pb2 import StopReason, TurnStatus
from rlm.v1.types_pb2 import SandboxLimits
from rlm_client import Budget, Client, usd
from rlm_client.durations import milliseconds

TEXT = "\n".join(f"{day:03} {'rain' if day % 7 in (0, 1, 4) else 'sun'} {day * 37 % 23}" for day in range(1, 366))
"""A year of weather: the day, what it was like, and how warm."""

TURNS = (
    "len(context), context[:20]",
    "days = [line.split() for line in context.splitlines()]\nwarm = [int(degrees) for _, _, degrees in days]",
    "print('warmest:', max(warm), 'on day', days[warm.index(max(warm))][0])",
    "days[400]",
    "print(llm_query('Which days had rain?\\nText:\\n' + '\\n'.join(context.splitlines()[:7])))",
    "warm.clear()\nwhile True: pass",
    "len(warm)",
)
"""What is run, a turn each. The last but one never ends: it is stopped after half a second, and its `clear` undone."""


def main() -> None:
    """Run the turns in a session made for them."""
    with Client() as client:
        context = client.upload(TEXT, "weather")
        session = client.create_session(
            context.context_id,
            budget=Budget(usd="0.10"),
            limits=SandboxLimits(turn_time=milliseconds(500)),
        )
        try:
            for code in TURNS:
                run(client, session.session_id, code)
            seen = client.get_session(session.session_id).coverage
            print(f"the session looked at {seen.fraction:.0%} of the text")
        finally:
            spent = client.delete_session(session.session_id)
        print(
            f"it cost {usd(spent.nano_usd)} for {spent.call_count} call, "
            f"and {spent.cpu_time.ToMilliseconds()} ms of processor time"
        )


def run(client: Client, session_id: str, code: str) -> None:
    """Run a turn and print it as a REPL would."""
    for number, line in enumerate(code.splitlines()):
        print("..." if number else ">>>", line)
    for response in client.execute(session_id, code):
        match response.WhichOneof("event"):
            case "output":
                print(response.output.text, end="")
            case "result" if response.result.status != TurnStatus.TURN_STATUS_OK:
                error = response.result.error
                undone = response.result.status == TurnStatus.TURN_STATUS_ROLLED_BACK
                stop = StopReason.Name(response.result.stop_reason).removeprefix("STOP_REASON_")
                what = f"undone: {stop}" if undone else error.type
                print(f"{what}: {error.message}")


if __name__ == "__main__":
    main()
