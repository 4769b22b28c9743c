"""Ask a question of every file below a folder, follow the run, and print the answer and what it cost.

Start a server with `make serve`, and in another terminal:

    .venv/bin/python examples/ask_a_folder.py docs "Which settings limit what may be spent?"

Each file is a document of the context, named by its path. Files that are not UTF-8 are left out, and said so.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlm_client import Budget, Client, RunEvent, RunState, usd


def main(folder: Path, question: str) -> int:
    """Ask, and return 0 where the run succeeded."""
    with Client() as client:
        context = client.upload(folder, skip_binary=True, on_skip=lambda where: print("left out:", where))
        print(f"{context.document_count} documents with {context.character_count:,} characters")

        run = client.create_run(question, context.context_id, budget=Budget(usd="0.50"))
        print(f"{run.run_id}: {run.model}, with {usd(run.budget.nano_usd)} to spend\n")
        for event in client.watch_run(run.run_id):
            tell(event)

        ended = client.get_run(run.run_id)
        calls, tokens = ended.spent.call_count, ended.spent.token_count
        print(f"\n{RunState.Name(ended.state)}: {calls} calls, {tokens:,} tokens, {usd(ended.spent.nano_usd)}")
        print(f"its code looked at {ended.coverage.fraction:.0%} of the folder\n")
        print(ended.answer or ended.end_message)
        return 0 if ended.state == RunState.RUN_STATE_SUCCEEDED else 1


def tell(event: RunEvent) -> None:
    """Print a line of what happens, indented by the depth of the RLM it happens in."""
    indent = "  " * event.depth
    match event.WhichOneof("body"):
        case "turn_started":
            print(f"{indent}turn {event.turn}")
        case "code_started":
            print(f"{indent}  runs {len(event.code_started.code.splitlines())} lines of code")
        case "output":
            for line in event.output.text.splitlines():
                print(f"{indent}  | {line[:120]}")
        case "call_finished":
            call = event.call_finished.call
            print(f"{indent}  asked {call.model}: {call.error or usd(call.spent.nano_usd)}")
        case "child_started":
            print(f"{indent}  gave a child {event.child_started.context_character_count:,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FOLDER QUESTION")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
