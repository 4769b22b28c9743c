"""What one session and one turn of it may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a session, all enforced outside the guest.

    A guest that reaches one gets a Python exception where the design of CPython allows it, and otherwise its turn is
    stopped and rolled back.
    """

    memory_bytes: int = 512 * MIB
    """Linear memory, mapped texts not counted. The guest gets `MemoryError`."""
    turn_seconds: float = 30.0
    """Running time of one turn, waiting in the door not counted. The turn is rolled back."""
    output_bytes: int = 64 * 1024
    """Output kept of one turn, both streams together. The middle of a longer one is cut out, and counted."""
    frame_bytes: int = 32 * MIB
    """One request or reply through the door. The guest gets an exception."""
    door_bytes: int = 256 * MIB
    """All requests of one turn through the door. The guest gets an exception."""
    door_calls: int = 10_000
    """Requests of one turn through the door. The guest gets an exception."""
    door_waiting: int = 1_000
    """Requests under way at once. The guest gets an exception."""
    file_bytes: int = 64 * MIB
    """Contents of all files in /tmp. The guest gets `OSError(ENOSPC)`."""
    files: int = 1_000
    """Files and directories in /tmp. The guest gets `OSError(ENOSPC)`."""
    open_files: int = 64
    """Open descriptors. The guest gets `OSError(EMFILE)`."""

    def within(self, ceiling: Limits) -> Limits:
        """Return these limits if none is above `ceiling`'s.

        Raises:
            ValueError: a limit is not positive or above the ceiling; the message names it and both values.
        """
        for field in fields(self):
            asked, most = getattr(self, field.name), getattr(ceiling, field.name)
            if asked <= 0:
                raise ValueError(f"{field.name} must be more than 0, not {asked}")
            if asked > most:
                raise ValueError(f"{field.name} may be at most {most}, not {asked}")
        return self
