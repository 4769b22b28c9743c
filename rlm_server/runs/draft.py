"""The answer of a node as its code has it so far."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.turn import Status


@dataclass(slots=True)
class Draft:
    """What the code gave as the answer. What it gives in a turn counts as that turn ends.

    `text` is the answer so far, and `ready` whether it ends the run. Only a turn that ran to its end makes it ready.
    What a turn gave that was undone was never given.
    """

    text: str = ""
    ready: bool = False
    _given: tuple[str, bool] | None = None
    """In the turn that runs: the text, and whether it is ready."""

    def begin(self) -> None:
        """Begin a turn, or begin it once more."""
        self._given, self.ready = None, False

    @property
    def given(self) -> tuple[str, bool] | None:
        """What the turn that runs gave: the text, and whether it is ready."""
        return self._given

    def take(self, text: str, ready: bool) -> None:
        """Take what the code gives."""
        self._given = text, ready

    def end(self, status: Status) -> None:
        """End the turn."""
        if self._given is not None and status is not Status.ROLLED_BACK:
            self.text, self.ready = self._given[0], self._given[1] and status is Status.OK
        self._given = None
