"""An agent over a folder: three tools of this program, a typed answer, and two further questions on the same variables.

Start a server with `make serve`, give it a model, and in another terminal:

    .venv/bin/python examples/agent.py FOLDER

The server may be stopped and started again meanwhile, or killed: the run goes on, and so does this program.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

from rlm_client import Budget, Client, Run

STOCK = {"apples": 120, "pears": 0, "quinces": 7}
ORDERS = {"type": "object", "additionalProperties": {"type": "integer"}}
"""The schema of the first answer: how much of what is ordered."""
BUDGET = Budget(usd="0.50")
FURTHER = ("Which of them cannot be sent today?", "What is left of each once the others are sent?")


def in_stock(fruit: str) -> int:
    """Return how many of a fruit are in the store."""
    print("looks up", fruit, flush=True)
    return STOCK.get(fruit, 0)


def today() -> str:
    """Return today's date."""
    return date.today().isoformat()


def note(text: str) -> None:
    """Write a line into the log of the store."""
    print("noted:", text, flush=True)


TOOLS = (in_stock, today, note)


def answered(client: Client, run: Run) -> Run:
    """Answer the calls of a run's tools until it has ended, and print what it says."""
    client.answer_tools(run.run_id, TOOLS)
    ended = client.get_run(run.run_id)
    print(">", ended.answer or ended.end_message, flush=True)
    return ended


def main(folder: Path) -> None:
    """Ask what is ordered, and then what that means."""
    with Client() as client:
        orders = client.upload(folder)
        run = client.create_run(
            "How many of each fruit are ordered?", orders.context_id, budget=BUDGET, tools=TOOLS, answer_schema=ORDERS
        )
        run = answered(client, run)
        for question in FURTHER:
            further = client.create_run(question, budget=BUDGET, tools=TOOLS, continue_run_id=run.run_id)
            run = answered(client, further)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
