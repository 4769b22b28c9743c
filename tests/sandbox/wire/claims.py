"""What a worker that lies might say of a turn: a true story in which anything may be something else."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from sandbox.corpora.corpus import BLOCK
from sandbox.memory.memory import PAGE
from sandbox.turn import Status, Stop, Turn, TurnError, Variable
from sandbox.wire.turns import Observed, write_turn

SIZE = 8 * BLOCK
OBSERVED = Observed(b"printed\n", b"oh\n", 2.5)
PRINTED = OBSERVED.output_bytes

TRUE = [
    Turn(Status.OK, "", "", PRINTED, False, 0.5, 3, None, (Variable("x", "list", 3), Variable("n", "int", -1))),
    Turn(Status.ERROR, "", "", PRINTED, False, 2.5, 0, TurnError("ValueError", "no", "Traceback\n"), ()),
    Turn(Status.ERROR, "", "", 10**9, True, 0.0, 1, TurnError("TURN_TIME", "a name of the guest's", ""), ()),
    Turn(Status.ROLLED_BACK, "", "", PRINTED, False, 1, 0, TurnError(Stop.TURN_TIME, "too long"), ()),
]
"""Turns of which OBSERVED may have been seen."""


def header(turn: Turn) -> dict[str, Any]:
    """Write the header of the frame in which a worker tells of a turn, with everything there can be in it."""
    inode = [101, False, 3, 0, 0, 0, 1]
    return {
        "turn": write_turn(turn),
        "size": SIZE,
        "whole": False,
        "written": 24,
        "corpora": 1,
        "layout": {"regions": [[PAGE, 7 * BLOCK]], "mapped": [[BLOCK, 0, 0]]},
        "seen": ["5"],
        "files": {
            "inodes": [[99, True, 0, 0, 0, 0, 1], inode],
            "writable": [["/tmp", 0], ["/tmp/f", 1]],
            "open": [[3, "/", None, 0, 0, 0], [4, "/tmp/f", 1, 66, 0, 3]],
            "next": 102,
        },
    }


ODD = (
    st.sampled_from([None, True, False, -1, 0, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400])
    | st.sampled_from([0.0, -0.0, -1e-9, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 2.5000001])
    | st.sampled_from(["", "ok", "rolled_back", "WORKER_LOST", "EXIT", "\ud800", "\0", "x" * 20_000, "/tmp/..", "\n"])
    | st.sampled_from([[], {}, [[]], [None] * 7, [["x", "y", 1] for _ in range(201)], {"a": 1}])
)
ANYTHING = ODD | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in a value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


@st.composite
def claims(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a header in which up to three values were replaced, left out, or told of twice."""
    told: dict[str, Any] = json.loads(json.dumps(header(draw(st.sampled_from(TRUE)))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from([place for place in places(told) if place]))
        holder: Any = told
        for key in place[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "leave out", "tell twice"])):
            case "replace":
                holder[place[-1]] = deepcopy(draw(ANYTHING))
            case "leave out":
                del holder[place[-1]]
            case "tell twice" if isinstance(holder, list):
                holder.append(deepcopy(holder[place[-1]]))
    return told
