"""The files below a directory, as documents."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rlm_client.documents import Document, in_file


def documents(folder: str, prefix: str) -> Iterator[Document]:
    """Give every file below a folder, sorted by its path, and named by that path below the folder, after the prefix.

    Hidden files and folders (a leading dot) are left out. So are links, as what they lead to is either in the folder
    under its own name or none of it; and pipes and devices.

    Raises:
        OSError: a folder or a file cannot be read.
        SourceRefused: a name cannot be a document's.
    """
    pending = [(prefix, folder, True)]
    while pending:
        name, path, is_folder = pending.pop()
        if not is_folder:
            yield in_file(name, path)
            continue
        below = f"{name}/" if name else ""
        pending += [(below + entry.name, entry.path, entry.is_dir(follow_symlinks=False)) for entry in _entries(path)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Give what a folder holds, the last first."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and _is_of_the_folder(entry)]
    return sorted(found, key=lambda entry: entry.name, reverse=True)


def _is_of_the_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
