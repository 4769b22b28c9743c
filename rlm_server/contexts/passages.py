"""Passages: the parts of a prompt that stand word for word in a context."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters `start` up to `end` of a document, by its number, which stand in the prompt from `prompt_start` on."""

    document: int
    start: int
    end: int
    prompt_start: int


@dataclass(frozen=True, slots=True)
class Traced:
    """Passages in the order of the prompt, and whether there may be more than these."""

    passages: tuple[Passage, ...]
    more: bool
