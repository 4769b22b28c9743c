"""Give a run a tool: a Python function of this program, which the run's code calls from inside its sandbox.

Start a server with `make serve`, and in another terminal:

    .venv/bin/python examples/client_tools.py
"""

from __future__ import annotations

from rlm_client import Budget, Client

PRICES = {"apples": 0.35, "pears": 0.55, "quinces": 1.20}
ORDER = "Please send 40 apples, 12 pears and 3 quinces to the kitchen."


def prices(question: str) -> dict[str, float]:
    """Return what the fruit that a question names costs, in euros each, by its name."""
    print(f"asked for prices: {question}")
    return {fruit: price for fruit, price in PRICES.items() if fruit in question}


def main() -> None:
    """Ask over an order, with the tool at hand."""
    with Client() as client:
        answer = client.ask("What do apples and quinces cost?", ORDER, budget=Budget(usd="0.10"), tools=[prices])
    print(answer.text)


if __name__ == "__main__":
    main()
