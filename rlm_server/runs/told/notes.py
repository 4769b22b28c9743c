"""What a model is told of what it did that leads nowhere: which limit that nears, what is left, and what to do."""

from __future__ import annotations


def repeated(times: int, most: int) -> str:
    """Say that a turn was the same as so many before; at `most` the node ends."""
    return (
        f"You have run this very code before, with the same result: {times} times now. {_at(times, most, 'repeats')} "
        "Do something else, or answer."
    )


def failing(turns: int, most: int) -> str:
    """Say that so many turns in a row have failed; at `most` the node ends."""
    return (
        f"{turns} turns in a row have failed. {_at(turns, most, 'errors_in_a_row')} Take a smaller step that you know "
        "to work, or answer with what you have."
    )


def _at(now: int, most: int, limit: str) -> str:
    return f"At {most} the run ends ({limit}), so {most - now} {'is' if most - now == 1 else 'are'} left."
