"""What the loop itself costs, beside the reference implementation, with the same scripted endpoint for both.

What is compared alternates within a round, and each figure is the median of its rounds. The last line of stdout is the
result as JSON; a figure of the reference has its name before it. A model answers at once, where nothing else is said.

turn_ms               between a turn's answer and the next turn's request, as the endpoint sees them
subcall_ms            one of 50 `llm_query`, one after another
batch_200_s           200 calls of 1 s as one batch, under a budget of $10 for ours
usual_batch_200_s     the same under the usual budget of $1, which holds the worst case of 48 at a time
tiny_100_x            100 calls of 0.1 s under a budget of $0.05, in times what they take under $10
create_to_request_ms  from a run's creation, at its client, to its first request, at the endpoint
commits_per_turn      durable commits of the database
first_output_ms       from a session's turn to the first line its code prints, at its client
faulty_tenth_answered share of 3,000 calls that are answered where a tenth of the attempts gets a 500, 503 or 429
count_gb_s            `count` of a pattern over a gigabyte, seconds
durable_turn_ms       what a turn takes longer where its run can outlive the server
resume_ms_p50         from a server's start to serve until a run goes on whose former server was killed
parallel_children_x   50 children of 10 turns with calls of 50 ms, in times of what one child's calls take
events_per_s          of a run with 1,000 calls, as its watcher is told them
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import peers
from benchmarks.contestant import OURS, Contestant, Driver, DriverError
from benchmarks.loop.endpoint import endpoint
from benchmarks.loop.faulty import CALLS, answered
from benchmarks.loop.outliving import measured as outliving_measured
from benchmarks.progress import Progress, shown
from benchmarks.rounds import Answers, Question, alternate

REFERENCE = "reference"
ROUNDS = 9
OUTLIVING_ROUNDS = 5
QUESTIONS = (
    Question("turn_ms", "turn", ROUNDS),
    Question("subcall_ms", "subcall", ROUNDS),
    Question("create_to_request_ms", "create", ROUNDS),
    Question("first_output_ms", "first_output", ROUNDS),
    Question("commits_per_turn", "commits", 3),
    Question("tiny_100_x", "tiny", 3),
    Question("batch_200_s", "batch", 1),
    Question("usual_batch_200_s", "usual_batch", 1),
    Question("count_gb_s", "count", 1),
)
COMPARED = ("turn_ms", "subcall_ms")


def measured(url: str, rounds: int, megabytes: int, reference: bool, progress: Progress) -> Answers:
    """Ask both drivers everything in turns.

    Raises:
        DriverError: ours failed.
    """
    contestants = [Contestant(OURS, (sys.executable, "-m", "benchmarks.loop.ours", url, str(megabytes)))]
    if reference and peers.environment("rlms", progress):
        python = f"{peers.FOLDER}/rlms/bin/python"
        contestants.append(Contestant(REFERENCE, (python, "-m", "benchmarks.loop.reference", url)))
    with ExitStack() as stack:
        drivers = []
        for contestant in contestants:
            progress(f"starting {contestant.name}")
            try:
                drivers.append(stack.enter_context(Driver(contestant)))
            except DriverError as error:
                if contestant.name == OURS:
                    raise
                progress(f"left out: {error}")
        for driver in drivers:  # what is imported and opened on first use is not counted
            for measure in sorted(driver.measures & {"turn", "subcall"}):
                driver.ask(measure)
        return alternate(drivers, QUESTIONS, rounds, progress)


def result(answers: Answers) -> dict[str, float]:
    """Return the figures by name, each in the unit that its name ends with."""
    figures: dict[str, float] = {}
    for question in QUESTIONS:
        for contestant, prefix in ((OURS, ""), (REFERENCE, f"{REFERENCE}_")):
            if (contestant, question.name) in answers:
                scale = 1e3 if question.name.endswith("_ms") else 1
                figures[prefix + question.name] = answers[contestant, question.name] * scale
    for name in COMPARED:
        if (other := figures.get(f"{REFERENCE}_{name}")) is not None:
            figures[f"{name.removesuffix('_ms')}_over_reference"] = figures[name] / other
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measure so often at most ({ROUNDS})")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"calls at the faulty provider ({CALLS:,})")
    parser.add_argument("--megabytes", type=int, default=1_000, help="of the text that is counted in (1,000)")
    parser.add_argument("--alone", action="store_true", help="without the reference implementation")
    options = parser.parse_args()
    progress = shown("compare, and trust no single figure")
    with endpoint() as url:
        figures = result(measured(url, options.rounds, options.megabytes, not options.alone, progress))
        progress("runs that outlive their server")
        outliving = asyncio.run(outliving_measured(url, min(options.rounds, OUTLIVING_ROUNDS), progress))
        figures |= {name: round(value, 3) for name, value in outliving.items()}
    progress(f"{options.calls:,} calls at a provider that fails a tenth of them")
    with TemporaryDirectory(prefix="bench-loop-") as folder:
        figures["faulty_tenth_answered"] = round(asyncio.run(answered(Path(folder), options.calls)), 4)
    width = max(map(len, figures))
    print("\n".join(f"{name.ljust(width)}  {value:,.4g}" for name, value in figures.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
