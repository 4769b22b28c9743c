"""What one session and one turn of it may use; and how a limit is declared: once, with all there is to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MIB = 1 << 20

_DECLARED = "limit"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an operator may set a limit to: from `least` to `most`, in `unit`. `doc` says what reaching it does."""

    least: float
    most: float
    unit: str
    doc: str


def limit(default: Any, *, least: float, most: float, unit: str, doc: str) -> Any:
    """Declare a limit, as a field of a dataclass: settings, what requests may ask for, and their pages follow from it.

    A `most` of infinity is for what may be without a limit. Units are words in the plural, such as bytes or seconds.
    """
    return field(default=default, metadata={_DECLARED: Bounds(least, most, unit, doc)})


def declared(limits: DataclassInstance | type[DataclassInstance]) -> dict[str, Bounds]:
    """Return the limits that a dataclass declares, by name and in order."""
    return {one.name: one.metadata[_DECLARED] for one in fields(limits) if _DECLARED in one.metadata}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a session, all enforced outside the guest.

    A guest that reaches one gets a Python exception where the design of CPython allows it, and otherwise its turn is
    stopped and rolled back.
    """

    memory_bytes: int = limit(
        512 * MIB,
        least=64 * MIB,  # with less, the interpreter itself has no room
        most=4096 * MIB,
        unit="bytes",
        doc="Linear memory, mapped texts not counted. The guest gets `MemoryError`.",
    )
    turn_seconds: float = limit(
        60.0,
        least=0.001,
        most=3_600,
        unit="seconds",
        doc="Running time of one turn, waiting in the door not counted. The turn is rolled back.",
    )
    output_bytes: int = limit(
        64 * 1024,
        least=1,
        most=16 * MIB,
        unit="bytes",
        doc="Output kept of one turn, both streams together. The middle of a longer one is cut out, and counted.",
    )
    frame_bytes: int = limit(
        32 * MIB,
        least=1_024,
        most=256 * MIB,
        unit="bytes",
        doc="One request or reply through the door. The guest gets an exception.",
    )
    frame_nodes: int = limit(
        50_000,
        least=100,
        most=1_000_000,
        unit="values and keys",
        doc="Values and keys of one request through the door, a text being one. The guest gets an exception.",
    )
    door_bytes: int = limit(
        256 * MIB,
        least=1,
        most=4096 * MIB,
        unit="bytes",
        doc="All requests and replies of one turn through the door. The guest gets an exception.",
    )
    door_calls: int = limit(
        10_000,
        least=1,
        most=1_000_000,
        unit="requests",
        doc="Requests of one turn through the door. The guest gets an exception.",
    )
    door_waiting: int = limit(
        1_000,
        least=1,
        most=10_000,
        unit="requests",
        doc="Requests under way at once. The guest gets an exception.",
    )
    file_bytes: int = limit(
        64 * MIB,
        least=0,
        most=1024 * MIB,
        unit="bytes",
        doc="Contents of all files in /tmp. The guest gets `OSError(ENOSPC)`.",
    )
    files: int = limit(
        1_000,
        least=1,
        most=100_000,
        unit="files",
        doc="Files and directories in /tmp. The guest gets `OSError(ENOSPC)`.",
    )
    open_files: int = limit(
        64,
        least=8,
        most=1_024,
        unit="descriptors",
        doc="Open descriptors. The guest gets `OSError(EMFILE)`.",
    )


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of a pool of sessions."""

    sessions: int = limit(
        256,
        least=1,
        most=4_096,
        unit="sessions",
        doc="Sessions that are live at once. Others hibernate; where they cannot, no more are started.",
    )
    worker_bytes: int = limit(
        8192 * MIB,
        least=256 * MIB,
        most=1 << 40,
        unit="bytes",
        doc="Memory of one worker process. One that holds more is killed, and its sessions go on in another.",
    )
    held_bytes: int = limit(
        256 * MIB,
        least=MIB,
        most=1 << 40,
        unit="bytes",
        doc="Requests and replies of one owner that the server holds at once. The guest gets an exception.",
    )
    worker_turns: int = limit(
        0,
        least=0,
        most=1_024,
        unit="turns",
        doc="Turns of one worker that run at once; others wait in line. 0: as many as the machine has processors.",
    )
    reserved_sessions: int = limit(
        16,
        least=0,
        most=4_096,
        unit="sessions",
        doc="Of `sessions`, those kept for owners that have few live ones; never more than a sixteenth of all.",
    )
    slot_seconds: float = limit(
        10.0,
        least=0.001,
        most=3_600,
        unit="seconds",
        doc="A session that finds no place among the live ones waits so long for one, and is then refused.",
    )
    stored_bytes: int = limit(
        4096 * MIB,
        least=0,
        most=1 << 50,
        unit="bytes",
        doc="Files of one owner's sessions and snapshots. A session that does not fit stays live and is not kept.",
    )
    waiting_turns: int = limit(
        64,
        least=1,
        most=10_000,
        unit="turns",
        doc="Turns that wait in line for one session. Another is refused.",
    )
    idle_worker_seconds: float = limit(
        10.0,
        least=0,
        most=3_600,
        unit="seconds",
        doc="A worker process whose owner has no session left stays so long, as starting one takes a while.",
    )
    rest_seconds: float = limit(
        300.0,
        least=0.001,
        most=math.inf,
        unit="seconds",
        doc="A session that rests so long hibernates; its next turn wakes it.",
    )
