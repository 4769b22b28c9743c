"""See what a budget refuses, where the refusal is seen, and what the ledger says afterwards.

Start a server with `make serve`, and in another terminal:

    .venv/bin/python examples/budgets.py

Every call is reserved at its worst case before it leaves. So a run never spends more than it has, and a call that might
cost too much is refused although its actual cost would have been small.
"""

from __future__ import annotations

from rlm_client import Budget, BudgetRefused, Client, Entries, Run, RunState, usd

TEXT = "\n".join(f"Invoice {n:4}: supplier {n % 40} wants payment in {20 + n % 41} days {'-' * 9}" for n in range(999))
QUESTION = "Which supplier wants payment in 30 days?"

LOOP = """
answered = 0
try:
    for n in range(5):
        llm_query(f"What does line {n} say?\\n" + context.splitlines()[n])
        answered += 1
except Exception as error:
    print(f"{type(error).__name__}: {error}")
print(answered, "of 5 calls were answered, and the code went on")
"""


def main() -> None:
    """Spend under budgets that are too small, enough, and counted in calls."""
    with Client() as client:
        context_id = client.upload(TEXT, "invoices").context_id

        print("A run with a hundredth of a cent cannot pay for the worst case of its first call:")
        show(client, finished(client, context_id, Budget(usd="0.0001")))

        print("\nA run with five calls is stopped at the sixth:")
        run = finished(client, context_id, Budget(calls=5))
        show(client, run)
        print("\nIts entries in the ledger, each with what was held and what it cost:")
        for entry in client.list_entries(Entries(run_id=run.run_id)):
            held, cost = usd(entry.held.nano_usd), usd(entry.amounts.nano_usd)
            cpu_ms = entry.amounts.cpu_time.ToMilliseconds()
            print(f"  {entry.model or 'a turn of code':14} held {held:12} cost {cost:11} {cpu_ms:5} ms")

        print("\nA run with a dollar succeeds, and leaves most of it:")
        show(client, finished(client, context_id, Budget(usd=1)))

        print("\nInside the sandbox a refusal is an exception. A session with three calls makes five:")
        session = client.create_session(context_id, budget=Budget(calls=3))
        try:
            for response in client.execute(session.session_id, LOOP):
                for line in response.output.text.splitlines():
                    print(f"  {line}")
        finally:
            client.delete_session(session.session_id)

        print("\nA budget beyond what the tenant has left is refused before anything starts:")
        try:
            client.create_run(QUESTION, context_id, budget=Budget(usd=1_000_000))
        except BudgetRefused as refused:
            print(f"  {refused.reason}: {refused}")

        print("\nWhat the tenant has spent, by model:")
        for row in client.list_usage("model"):
            spent, cpu_ms = row.amounts, row.amounts.cpu_time.ToMilliseconds()
            name = row.key or "turns of code"
            print(f"  {name:14} {usd(spent.nano_usd):11} {spent.call_count:5} calls {cpu_ms:7} ms")


def finished(client: Client, context_id: str, budget: Budget) -> Run:
    """Ask the question under a budget, and return the run when it has ended."""
    run = client.create_run(QUESTION, context_id, budget=budget)
    for _ in client.watch_run(run.run_id):
        pass
    return client.get_run(run.run_id)


def show(client: Client, run: Run) -> None:
    """Print how a run ended, and where its account stands."""
    account = client.get_budget(run.run_id).account
    print(f"  {RunState.Name(run.state)}{': ' + run.end_message if run.end_message else ''}")
    limit = f"of {usd(account.limit.nano_usd)}" if account.limit.HasField("nano_usd") else "with no limit of money"
    print(f"  spent {usd(account.posted.nano_usd)} {limit}, in {account.posted.call_count} calls")


if __name__ == "__main__":
    main()
