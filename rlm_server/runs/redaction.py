"""Contents of runs that a tenant's policy keeps from being kept and told: what they are, and what stands for them.

Every text of an event is contents, unless it is named here. What stands for a text is its size and a digest.
"""

from __future__ import annotations

import hmac
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from rlm_server.broker.provider import Failure
from rlm_server.database.requests import Request
from rlm_server.runs.cuts import CutText, size_of, with_texts
from rlm_server.runs.state import EndReason, own_words

Value = TypeVar("Value")
Rule = Callable[[str], str]
"""Returns what is left of a text that is redacted."""

_TYPE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
"""What is taken for the name of an exception's type. Code may say anything."""
_FAILURES = frozenset((*Failure, EndReason.CANCELLED))
FAILED = "failed"
"""What is left of a call's error that begins with none of the server's own words."""


class ContentsRedacted(Exception):
    """What is asked for was redacted, and is not there."""

    def __init__(self, node: str) -> None:
        super().__init__(f"the answer of {node} was redacted, as the tenant's policy says, and is not kept")
        self.node = node


class Redaction:
    """Redacts contents of the tenants of which `redacts_contents` says so, whenever it is asked.

    `secret` is the server's own. Without it, nobody can tell by a digest what a text was.
    """

    def __init__(self, redacts_contents: Callable[[str], bool], secret: bytes) -> None:
        self._redacts, self._secret = redacts_contents, secret

    def of(self, tenant: str, run: str) -> RunRedaction:
        """Return the redaction of a run. Its digests are its own: those of equal texts in two runs differ."""
        return RunRedaction(lambda: self._redacts(tenant), self._key("run", tenant, run))

    def of_request(self, request: Request | None) -> Request | None:
        """Return a request of which nothing is kept that its question could be guessed by."""
        if request is None:
            return None
        key = self._key("request", request.tenant, request.id)
        return replace(request, kept_digest=_digest(key, request.content_sha256))

    def _key(self, *names: str) -> bytes:
        return hmac.digest(self._secret, "\0".join(("redaction", *names)).encode(), "sha256")


class RunRedaction:
    """Redacts contents of one run, for as long as `wanted` says so. A digest is an HMAC-SHA-256 with `key`."""

    def __init__(self, wanted: Callable[[], bool], key: bytes) -> None:
        self._wanted, self._key = wanted, key

    @property
    def wanted(self) -> bool:
        """Whether no contents are to be kept."""
        return self._wanted()

    def redacted(self, value: Value, leaving: Collection[str] = ()) -> tuple[Value, tuple[CutText, ...]]:
        """Redact the texts of a dataclass, but for those at the paths `leaving`, and return which were."""
        if not self._wanted():
            return value, ()
        redacting = _Redacting(self._key, leaving)
        return with_texts(value, redacting), tuple(redacting.found)

    def text(self, name: str, text: str) -> tuple[str, tuple[CutText, ...]]:
        """Redact one text that is contents."""
        if not self._wanted() or not text:
            return text, ()
        return "", (_stand_in(self._key, name, text),)


UNREDACTED = RunRedaction(lambda: False, b"")
"""Redacts nothing."""


@dataclass(slots=True)
class _Redacting:
    key: bytes
    leaving: Collection[str]
    found: list[CutText] = field(default_factory=list)

    def text(self, owner: type, name: str, text: str, path: str, /) -> str:
        left = _left(owner, name, text)
        if left == text or path in self.leaving:
            return text
        self.found.append(_stand_in(self.key, path, text))
        return left

    def items(self, items: tuple[Any, ...], names: Sequence[str], path: str, /) -> tuple[Any, ...]:
        kind = type(items[0])
        after = tuple(
            replace(item, **{name: _left(kind, name, getattr(item, name)) for name in names}) for item in items
        )
        if after == items or path in self.leaving:
            return items
        texts = [getattr(item, name) for item in items for name in names]
        self.found.append(CutText(path, sum(map(size_of, texts)), _digest(self.key, "\0".join(texts))))
        return after


def _stand_in(key: bytes, path: str, text: str) -> CutText:
    return CutText(path, size_of(text), _digest(key, text))


def _digest(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode("utf-8", "replace"), "sha256").hex()


def _left(owner: type, name: str, text: str) -> str:
    rule = rules(owner).get(name)
    return "" if rule is None else rule(text)


@cache
def rules(owner: type) -> Mapping[str, Rule]:
    """Return what is left of those texts of a dataclass that are not contents. All others are."""
    hints = typing.get_type_hints(owner)
    closed = {name: _whole for name, hint in hints.items() if _is_closed(hint)}
    named = {name: rule for name in hints if (rule := NO_CONTENTS.get(f"{owner.__name__}.{name}")) is not None}
    return closed | named


def _is_closed(hint: Any) -> bool:
    """Whether what has this type is one of a few words of the server's own."""
    return typing.get_origin(hint) is typing.Literal or (isinstance(hint, type) and issubclass(hint, StrEnum))


def _whole(text: str) -> str:
    return text


def _type(text: str) -> str:
    return text if _TYPE.fullmatch(text) else ""


def _failure(error: str) -> str:
    word = error.partition(":")[0]
    return word if word in _FAILURES or not error else FAILED


NO_CONTENTS: Mapping[str, Rule] = {
    "RunStarted.continue_run_id": _whole,
    "RunStarted.model": _whole,
    "StrategyChosen.reason": _whole,
    "RunStarted.sub_model": _whole,
    "NodeResumed.reason": _whole,
    "ModelReplied.model": _whole,
    "ModelReplied.call_id": _whole,
    "ChildStarted.child_id": _whole,
    "ChildFinished.child_id": _whole,
    "ChildFinished.reason": own_words,
    "BudgetWarning.unit": _whole,
    "Guard.name": _whole,
    "RunFinished.reason": own_words,
    "CallStarted.call_id": _whole,
    "CallStarted.model": _whole,
    "FinishedCall.call_id": _whole,
    "FinishedCall.model": _whole,
    "FinishedCall.error": _failure,
    "CallTraced.call_id": _whole,
    "ToolCallRequested.call_id": _whole,
    "ToolCallRequested.name": _whole,
    "ToolCallAnswered.call_id": _whole,
    "ModelCallRequested.call_id": _whole,
    "ModelCallRequested.model": _whole,
    "TurnError.type": _type,
    "Outcome.reason": own_words,
}
"""Texts that are not contents, by class and field, and what is left of each: names, ids, and words of the server's."""
