"""The request for a turn, and how it ended. The worker writes the latter, and the server checks every field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandbox.inputs import SEED_BYTES, Inputs
from sandbox.turn import (
    GAP,
    MAX_COUNT,
    MAX_NAME,
    MAX_TRACEBACK,
    MAX_VARIABLES,
    Status,
    Stop,
    Turn,
    TurnError,
    Variable,
)  # fmt: skip
from sandbox.wire.frames import Frame, Kind, WireError


@dataclass(frozen=True, slots=True)
class Observed:
    """What the server observed of a turn: what it printed, and the seconds it took in all."""

    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0

    @property
    def output_bytes(self) -> int:
        """Bytes received of both streams."""
        return len(self.stdout) + len(self.stderr)

    @property
    def texts(self) -> tuple[str, str]:
        """The text received of stdout, and that of stderr."""
        return self.stdout.decode("utf-8", "replace"), self.stderr.decode("utf-8", "replace")


def write_turn_request(session: int, turn: int, code: bytes, inputs: Inputs | None) -> Frame:
    """Write the request to run a turn, and be told these inputs in it. Refusals of theirs are the server's affair."""
    if inputs is None:
        return Frame(Kind.EXECUTE, session, data=code, turn=turn)
    told = inputs.seed + inputs.log
    return Frame(Kind.EXECUTE, session, header={"inputs": len(told)}, data=told + code, turn=turn)


def read_turn_request(frame: Frame) -> tuple[str, Inputs | None]:
    """Read what `write_turn_request` wrote: the code and the inputs."""
    size = frame.header.get("inputs", 0)
    inputs = None
    if size:
        inputs = Inputs(frame.data[:SEED_BYTES])
        if size > SEED_BYTES:
            inputs.note(0, frame.data[SEED_BYTES:size], 0)
    return frame.data[size:].decode("utf-8", "surrogatepass"), inputs


def write_turn(turn: Turn) -> list[Any]:
    """Write a turn for another process. Its output is left out, because the process has it already."""
    told = (turn.error.type, turn.error.message, turn.error.traceback) if turn.error is not None else None
    error = [part[:MAX_TRACEBACK] for part in told] if told is not None else None
    variables = [[variable.name, variable.type, variable.length] for variable in turn.variables]
    return [
        turn.status, turn.output_bytes, turn.truncated, turn.running_seconds, turn.door_calls, error, variables,
    ]  # fmt: skip


def read_turn(fields: object, observed: Observed) -> Turn:
    """Read a turn that another process claims to have written with `write_turn`.

    Raises:
        TypeError, ValueError: it is not a turn, or contradicts what was observed.
    """
    status, output_bytes, truncated, running_seconds, door_calls, error, variables = _listed(fields, 7)
    ended = Status(_text(status, MAX_NAME))
    printed, heard = _whole(output_bytes, 0), observed.output_bytes
    if type(truncated) is not bool or (printed <= heard - GAP if truncated else printed != heard):
        raise ValueError(f"{printed} bytes of output, where {heard} came")
    return Turn(
        ended, *observed.texts, printed, truncated, _seconds(running_seconds, observed.seconds),
        _whole(door_calls, 0), _error(error, ended), tuple(map(_variable, _listed(variables, None))),
    )  # fmt: skip


def write_failure(session: int, turn: int, error: MemoryError) -> Frame:
    """Write that a turn could not begin or end because memory is short. The turn has left no trace."""
    return Frame(Kind.FAILED, session, header={"message": str(error)[:MAX_TRACEBACK]}, turn=turn)


def read_failure(frame: Frame) -> str:
    """Read the message of what `write_failure` wrote.

    Raises:
        WireError: `write_failure` cannot have written it.
    """
    try:
        return _text(frame.header.get("message"), MAX_TRACEBACK)
    except (TypeError, ValueError) as error:
        raise WireError(f"a failure that cannot be read: {error!r:.200}") from None


def _error(error: object, ended: Status) -> TurnError | None:
    if (error is None) is not (ended is Status.OK):
        raise ValueError(f"a turn that ended {ended} and the error {error is not None}")
    if error is None:
        return None
    kind, message, traceback = (_text(part, MAX_TRACEBACK) for part in _listed(error, 3))
    if ended is Status.ROLLED_BACK:  # in any other case the guest chose the name of its exception
        kind = Stop(kind)
        if kind is Stop.WORKER_LOST:
            raise ValueError("a process that says it was lost")
    return TurnError(kind, message, traceback)


def _variable(said: object) -> Variable:
    name, kind, length = _listed(said, 3)
    return Variable(_text(name, MAX_NAME), _text(kind, MAX_NAME), _whole(length, -1))


def _listed(value: object, length: int | None) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_VARIABLES or (length is not None and len(value) != length):
        raise TypeError("a list of something else, or none")
    return value


def _text(value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise TypeError(f"no text, or one of more than {most} characters")
    value.encode()  # a ValueError where it has surrogates
    return value


def _whole(value: object, least: int) -> int:
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise ValueError("a number that counts nothing")
    return value


def _seconds(value: object, most: float) -> float:
    if type(value) not in (int, float) or not 0 <= value <= most:  # type: ignore[operator]
        raise ValueError(f"a time that did not pass: there were {most:.6f} seconds")
    return float(value)  # type: ignore[arg-type]
