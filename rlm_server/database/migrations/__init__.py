"""The schema, as SQL scripts in the order in which every database has seen them.

A script is a file here: `NNNN_what_it_changes.sql`, numbered from 0001 without a gap. A database remembers how many it
has seen. So the next change is the next file, and a file that was released never changes.
"""

from __future__ import annotations

import re
from importlib import resources

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def names() -> tuple[str, ...]:
    """Return the scripts' file names, oldest first.

    Raises:
        RuntimeError: a number is missing or there twice, so that the order is not known.
    """
    found = sorted(entry.name for entry in resources.files(__name__).iterdir() if entry.name.endswith(".sql"))
    numbers = [int(match[1]) if (match := _NAME.fullmatch(name)) else 0 for name in found]
    if numbers != list(range(1, len(found) + 1)):
        raise RuntimeError(f"the migrations are not numbered from 0001 without a gap: {', '.join(found)}")
    return tuple(found)


MIGRATIONS: tuple[str, ...] = tuple(resources.files(__name__).joinpath(name).read_text("utf-8") for name in names())
"""The scripts, oldest first."""
