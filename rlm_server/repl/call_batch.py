"""The prompts of one request, what each of them got, and how much room is left for answers."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_server.repl.bounds import MAX_ERROR, cut
from sandbox.door import DoorRefusal, Json, granted

Slot = dict[str, Json]
"""What a prompt got: `ok`, with `cut` where the answer was cut off at so many tokens; or `error`."""


def failed(type: str, message: str, kind: str = "") -> Slot:
    """Make the slot of a request that failed."""
    error: dict[str, Json] = {"type": type, "message": cut(message, MAX_ERROR)}
    return {"error": {**error, "kind": kind} if kind else error}


def said_in(slot: Slot) -> str:
    """Return the answer of a slot, or the message of its error."""
    error = slot.get("error")
    return str(error["message"] if isinstance(error, dict) else slot["ok"])


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why calls are not made, as the guest is told it."""

    type: str
    message: str
    kind: str = ""

    @property
    def slot(self) -> Slot:
        """The slot of a prompt that is not asked for it."""
        return failed(self.type, self.message, self.kind)

    @property
    def error(self) -> DoorRefusal:
        """The refusal of a request as a whole."""
        return DoorRefusal(self.type, self.message, self.kind)


@dataclass(slots=True)
class Room:
    """What is left of the bytes that all answers to one request may have."""

    most: int
    left: int

    @classmethod
    def of(cls, most: int) -> Room:
        """Return the room of a request that has no answer yet."""
        return cls(most, most)


@dataclass(frozen=True, slots=True)
class Asking:
    """A prompt that is asked about once, and the places of its slots."""

    prompt: str
    places: tuple[int, ...]


@dataclass(slots=True)
class Batch:
    """Prompts for one model. `refusal` says why those that were not sent yet are not going to be."""

    model: str
    slots: list[Slot | None]
    askings: list[Asking]
    room: Room
    refusal: Refusal | None = None
    alone: bool = False
    """Whether one call is all that is to be made: it finds out itself whether it can be."""

    @classmethod
    def of(cls, model: str, prompts: list[str], room: Room, *, each: bool) -> Batch:
        """Make a batch. Identical prompts are asked about once, or `each` of them."""
        if each:
            askings = [Asking(prompt, (place,)) for place, prompt in enumerate(prompts)]
        else:
            places: dict[str, list[int]] = {}
            for place, prompt in enumerate(prompts):
                places.setdefault(prompt, []).append(place)
            askings = [Asking(prompt, tuple(of_it)) for prompt, of_it in places.items()]
        return cls(model, [None] * len(prompts), askings, room)

    def fill(self, asking: Asking, slot: Slot) -> None:
        """Give every slot of a prompt a copy."""
        for place in asking.places:
            self.slots[place] = dict(slot)

    def answer(self, asking: Asking, text: str, cut_at: int = 0) -> None:
        """Answer a prompt in all its slots. What does not fit into a reply any more is an error, and ends the batch."""
        size = len(granted(text)) * len(asking.places)
        if size > self.room.left:
            most = self.room.most
            self.refusal = Refusal("LimitExceeded", f"the answers to one request may have {most} bytes (frame_bytes)")
            self.fill(asking, self.refusal.slot)
        else:
            self.room.left -= size
            self.fill(asking, {"ok": text, "cut": cut_at} if cut_at else {"ok": text})

    @property
    def unanswered(self) -> int:
        """How many slots have nothing yet."""
        return self.slots.count(None)

    def finished(self) -> list[Slot]:
        """Return the slots. Those of prompts that were not sent have the refusal."""
        rest = {} if self.refusal is None else self.refusal.slot
        return [dict(rest) if slot is None else slot for slot in self.slots]
