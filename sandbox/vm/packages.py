"""The files of an image's wheels: one file of the host's, mapped, and read-only files in the guest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap

from sandbox.vm.files import Inode

FOLDER = "/usr/local/lib/python3.15/site-packages"
"""Where they are in the guest. Python looks there last."""
_FIRST_NUMBER = 1 << 41


def packed(files: Mapping[str, bytes]) -> bytes:
    """Write files by their paths below `FOLDER`: a line that says how long the list is, the list, and the contents."""
    listed = json.dumps([[path, len(content)] for path, content in files.items()]).encode()
    return b"%d\n" % len(listed) + listed + b"".join(files.values())


def mounted(fd: int) -> dict[str, Inode]:
    """Map what `packed` wrote to a file, and return its files by their paths in the guest. No content is copied."""
    data = memoryview(mmap(fd, 0, access=ACCESS_READ))
    length, _, _ = bytes(data[:20]).partition(b"\n")
    begins = len(length) + 1
    place = begins + int(length)
    found = {}
    for number, (path, size) in enumerate(json.loads(bytes(data[begins:place])), _FIRST_NUMBER):
        found[f"{FOLDER}/{path}"] = Inode(number, data[place : place + size])
        place += size
    return found
