"""Turns the source of an upload into a text or a sequence of documents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any

from rlm_client import archive, directory, jsonl
from rlm_client.archive import ArchiveLimits
from rlm_client.documents import Document, Text, encoded, in_file, in_memory

MAX_DERIVED_NAME = 200
"""Characters of a context's name that is made up here."""

FilePath = PathLike[str]

Source = Text | FilePath | Mapping[str, Text] | Iterable[FilePath | tuple[str, Text]] | dict[str, Any] | list[Any]
"""What can be uploaded. One text: a `str` or bytes, or the path of a file. Documents: the path of a directory, a .jsonl
file or a .zip archive; a mapping from names to texts; any number of paths and (name, text) pairs. A dict or list that
holds dicts, lists or numbers becomes one text: JSON."""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How files become documents.

    `text_field` and `name_field` are the fields of a .jsonl file's objects (see `jsonl.documents`). With `skip_binary`
    files that are not UTF-8 are left out of a sequence of documents, and `on_skip` is told where each is.
    """

    text_field: str = "text"
    name_field: str | None = None
    archive_limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    skip_binary: bool = False
    on_skip: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """One text or a sequence of documents, not yet read. Each call of `documents` gives them anew."""

    name: str
    is_text: bool
    documents: Callable[[], Iterator[Document]]


def material(source: Source, name: str | None, reading: FileOptions) -> Material:
    """Tell what a source is. `name` is the context's; None stands for one made from the paths.

    An iterator, which can be read only once, is read into a list here.

    Raises:
        SourceRefused: a text is not Unicode.
        TypeError: it is nothing that can be uploaded.
        ValueError: a `str` is the name of a file that exists: which of the two was meant?
    """
    if _is_json(source):
        source = json.dumps(source, ensure_ascii=False).encode()
    if isinstance(source, str):
        if _names_a_file(source):
            raise ValueError(f"{source!r} names a file: pass pathlib.Path({source!r}) for it, or bytes for this text")
        source = encoded(source, "the text")
    if isinstance(source, bytes):
        named = "" if name is None else name
        return _text(named, partial(in_memory, "", source, named or "the text"))
    if isinstance(source, PathLike):
        path = os.fspath(source)
        named = _name_of_one(path) if name is None else name
        if not _holds_documents(path):
            return _text(named, partial(in_file, "", path))
        return Material(named, False, partial(_in_path, path, "", reading))
    if isinstance(source, Mapping):
        pairs: Iterable[FilePath | tuple[str, Text]] = source.items()
        return Material(name or "", False, partial(_in_items, pairs, None, reading))
    if not isinstance(source, Iterable):
        raise TypeError(f"a text, paths, or (name, text) pairs can be uploaded, not {type(source).__name__}")
    items = list(source) if isinstance(source, Iterator) else source
    # An iterable that is no collection may make its texts while it is iterated. So it is not searched for paths.
    paths = [os.fspath(item) for item in items if isinstance(item, PathLike)] if isinstance(items, Collection) else []
    named = name_of(paths) if name is None else name
    return Material(named, False, partial(_in_items, items, _folder_of_all(paths), reading))


def _is_json(source: object) -> bool:
    """Whether it is data, and neither texts by their names nor paths and pairs."""
    if isinstance(source, dict):
        return any(isinstance(value, dict | list | int | float) for value in source.values())
    if not isinstance(source, list) or any(isinstance(item, PathLike | tuple) for item in source):
        return False
    return any(isinstance(item, dict | list | int | float) for item in source)


def name_of(paths: list[str]) -> str:
    """Make a context's name from the paths it is made of."""
    match paths:
        case []:
            return ""
        case [path]:
            return _name_of_one(path)
    more = f" and {len(paths) - 1:,} more"
    return _name_of_one(paths[0])[: MAX_DERIVED_NAME - len(more)] + more


def _text(name: str, make: Callable[[], Document]) -> Material:
    return Material(name, True, lambda: iter((make(),)))


def _in_items(
    items: Iterable[FilePath | tuple[str, Text]], folder: str | None, reading: FileOptions
) -> Iterator[Document]:
    """Give the documents of paths, named by their places below the folder, and of pairs, named as they say."""
    for number, item in enumerate(items):
        match item:
            case PathLike():
                path = os.fspath(item)
                yield from _in_path(path, _place(path, folder), reading)
            case (str() as name, text):
                yield in_memory(name, text)
            case str():
                raise TypeError(
                    f"item {number} is a str: pass pathlib.Path({item[:200]!r}) for a file, or a (name, text) pair"
                )
            case _:
                raise TypeError(f"item {number} must be a path or a (name, text) pair, not {type(item).__name__}")


def _in_path(path: str, prefix: str, reading: FileOptions) -> Iterator[Document]:
    if os.path.isdir(path):
        return directory.documents(path, prefix)
    match _suffix(path):
        case ".jsonl":
            return jsonl.documents(path, prefix, reading.text_field, reading.name_field)
        case ".zip":
            return archive.documents(path, prefix, reading.archive_limits)
    return iter((in_file(prefix, path),))


def _holds_documents(path: str) -> bool:
    return os.path.isdir(path) or _suffix(path) in (".jsonl", ".zip")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _names_a_file(text: str) -> bool:
    return len(text) < 1024 and "\n" not in text and "\0" not in text and os.path.exists(text)


def _folder_of_all(paths: list[str]) -> str | None:
    """Give the deepest folder that all paths have in common. A file that holds documents counts as a folder."""
    whole = [os.path.abspath(path) for path in paths]
    try:
        return os.path.commonpath([path if _holds_documents(path) else os.path.dirname(path) for path in whole])
    except ValueError:  # there are none, or they lie on several drives
        return None


def _place(path: str, folder: str | None) -> str:
    if folder is None:
        return os.path.basename(path)
    place = os.path.relpath(os.path.abspath(path), folder)
    return "" if place == os.curdir else place.replace(os.sep, "/")


def _name_of_one(path: str) -> str:
    # A file's name may be no Unicode; a context's name is only for show.
    name = os.path.basename(os.path.abspath(path)).encode("utf-8", "replace").decode("utf-8")
    return name[:MAX_DERIVED_NAME]
