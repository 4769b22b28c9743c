"""A session's files, written for another process or to be stored: a description in JSON, and the contents."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Any

from sandbox.vm.files import Files, Inode, OpenFile


def write_files(files: Files) -> tuple[dict[str, Any], bytes]:
    """Write files: their description as a JSON object, and their contents one after another.

    The listing of an open directory is not written. Where one had begun, it continues with the entries there are then.
    """
    inodes = files.own_inodes()
    numbers = {id(inode): i for i, inode in enumerate(inodes)}
    header = {
        "inodes": [
            [i.number, i.directory, len(i.data), i.accessed, i.modified, i.changed, i.links] for i in inodes
        ],
        "writable": [[path, numbers[id(inode)]] for path, inode in files.writable.items()],
        "open": [
            [fd, file.path, numbers.get(id(file.inode)), file.rights, file.flags, file.position]
            for fd, file in files.open.items()
        ],
        "next": files.next_number,
    }  # fmt: skip
    return header, b"".join(bytes(inode.data) for inode in inodes)


def read_files(header: dict[str, Any], contents: bytes, known: Files) -> Files:
    """Read what `write_files` wrote. The read-only files are those of `known`.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: `write_files` cannot have written it.
    """
    inodes: list[Inode] = []
    taken = 0
    for number, directory, size, *rest in header["inodes"]:
        data = bytearray(contents[taken : taken + _whole(size)])
        accessed, modified, changed, links = map(_whole, rest)
        inodes.append(Inode(_whole(number), data, directory is True, accessed, modified, changed, links))
        taken += size
    if taken != len(contents):
        raise ValueError(f"contents of {len(contents)} bytes for files of {taken}")
    writable = {_path(path): inodes[_whole(held)] for path, held in header["writable"]}
    files = replace(known, writable=writable, open={}, next_number=_whole(header["next"], 1 << 62))
    for fd, path, held, *rest in header["open"]:
        inode = files.find(_path(path)) if held is None else inodes[_whole(held)]
        if inode is None:
            raise ValueError(f"a descriptor of {path!r}, which is not there")
        rights, flags, position = map(_whole, rest)
        files.open[_whole(fd)] = OpenFile(path, inode, rights, flags, position)
    return files


def _whole(value: object, most: int = (1 << 64) - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number of a file's")
    return value


def _path(value: object) -> str:
    if type(value) is not str or not value.startswith("/") or posixpath.normpath(value) != value or "\0" in value:
        raise ValueError(f"{value!r} is no path")
    value.encode()  # a ValueError where it has surrogates
    return value
