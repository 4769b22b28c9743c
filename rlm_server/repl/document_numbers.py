"""Which documents of a corpus a request of guest code means by a part of them."""

from __future__ import annotations

from sandbox.door import DoorRefusal, Json


def part_of_documents(name: str, asked: Json, count: int) -> range:
    """Return the numbers that a part means, `[start, stop, step]` as Python's `range` takes it, of `count` documents.

    Raises:
        DoorRefusal: the argument of this name is no such part, or has numbers that no document has.
    """
    if not (isinstance(asked, list) and len(asked) == 3):
        raise DoorRefusal("TypeError", f"{name} must be [start, stop, step]")
    start, stop, step = asked
    if not (type(start) is int and type(stop) is int and type(step) is int and step):
        raise DoorRefusal("TypeError", f"{name} must be [start, stop, step]")
    numbers = range(start, stop, step)
    if not all(0 <= outermost < count for outermost in (*numbers[:1], *numbers[-1:])):
        raise DoorRefusal("IndexError", f"there are {count} documents")
    return numbers
