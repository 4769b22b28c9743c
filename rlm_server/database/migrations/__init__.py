"""The schema, as SQL scripts in the order in which every database has seen them.

A script is a file here: `NNNN_what_it_changes.sql`, numbered from 0001 without a gap. It is written for SQLite, and has
no `BEGIN` and no `COMMIT`. A database remembers how many it has seen. So the next change is the next file, and a file
that was released never changes; `tests/database/test_migrations.py` holds the digest of each.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def scripts(folder: Traversable) -> dict[str, str]:
    """Return the scripts in a folder by their file names, oldest first.

    Raises:
        RuntimeError: a name or a number is wrong, so that the order is not known; the message names the file.
    """
    files = {entry.name: entry for entry in folder.iterdir() if entry.name.lower().endswith(".sql")}
    for number, name in enumerate(sorted(files), start=1):
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) != number:
            raise RuntimeError(
                f"migration {name!r} is where number {number:04} belongs: the files are named NNNN_what_it_changes.sql "
                "and numbered from 0001, without a gap and none twice"
            )
    return {name: files[name].read_text("utf-8") for name in sorted(files)}


MIGRATIONS: tuple[str, ...] = tuple(scripts(resources.files(__name__)).values())
"""The scripts, oldest first."""
