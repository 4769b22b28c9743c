"""The marks by which models set their reasoning apart from what they say, and those of their message formats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

_NAMES = (
    r"(?:seed:)?(?:think|thinking|thought|thoughts|reason|reasoning|reflection|analysis|scratchpad|inner_monologue"
    r"|ant_?thinking)"
)
_CHANNEL = r"[^<\n]{0,200}+(?:<\|constrain\|>[^<\n]{0,200}+)?<\|message\|>"
_OPENING = (
    rf"<{_NAMES}(?:\s[^<>\n]{{0,200}}+)?>",
    r"\[THINK\]",
    r"◁think▷",
    r"<\|begin_of_thought\|>",
    r"<\|(?:start_)?(?:think|thinking)\|>",
    r"<\|channel>\s?thought",
)
_CLOSING = (
    rf"</{_NAMES}\s?>",
    r"\[/THINK\]",
    r"◁/think▷",
    r"<\|end_of_thought\|>",
    r"<\|(?:/|end_)(?:think|thinking)\|>",
    r"<channel\|>",
)
_MARK = re.compile(
    rf"(?P<opening>{'|'.join(_OPENING)})|(?P<closing>{'|'.join(_CLOSING)})"
    rf"|(?P<message><\|channel\|>(?:final|commentary(?! to=)){_CHANNEL})"
    rf"|(?P<aside><\|channel\|>{_CHANNEL})"
    r"|(?P<end><\|(?:end|return|call)\|>|<\|start\|>(?:assistant)?+)",
    re.IGNORECASE,
)
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
    "<end_of_turn>", "<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
_QUOTED = ("`", '"', "'", "\\")


class Kind(Enum):
    """What a mark says of the text that follows it."""

    OPENING = auto()
    """Reasoning, until a closing mark."""
    CLOSING = auto()
    """What the model says; what stood before was reasoning."""
    MESSAGE = auto()
    """What the model says."""
    ASIDE = auto()
    """Reasoning, or words for a tool, until another part of the message begins."""
    END = auto()
    """Another part of the message."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark in a line, from `start` to before `end` in characters. It may be the first or the last thing there."""

    kind: Kind
    line: int
    start: int
    end: int
    first: bool
    last: bool


def marks(line: str, number: int) -> list[Mark]:
    """Find the marks of a line, in order. One in quotes or backticks is spoken of, and is none."""
    if "<" not in line and "[" not in line and "◁" not in line:
        return []
    begin, end = len(line) - len(line.lstrip()), len(line.rstrip())
    return [
        Mark(
            Kind[(found.lastgroup or "").upper()],
            number,
            found.start(),
            found.end(),
            found.start() <= begin,
            found.end() >= end,
        )
        for found in _MARK.finditer(line)
        if line[found.start() - 1 : found.start()] not in _QUOTED
    ]


def without_end_marks(text: str) -> str:
    """Take off the marks by which models end a message, where some were left in the text."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        mark = next((mark for mark in _ENDS if text.endswith(mark, 0, end)), None)
        if mark is None:
            return text if not any(mark in text[end:] for mark in _ENDS) else text[:end]
        end -= len(mark)
