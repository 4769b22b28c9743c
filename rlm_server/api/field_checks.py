"""Reads all fields of a request before it is refused, so that all that are wrong are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, cast

from rlm_server.api.errors import InvalidField, NotFound, Violation

P = ParamSpec("P")
T = TypeVar("T")

MAX_WRONG = 200
"""Fields that are found wrong before a request is read no further."""


class _Refused(Exception):
    """Fields are wrong, and no more are looked at."""


class FieldChecks:
    """What is wrong with a request. A context manager, which ends with all of it where there is anything.

    `check(read, …)` returns what `read(…)` returns, and goes on where that raises `InvalidField`: what it returns then
    must not be looked at before the end. Where more than `MAX_WRONG` fields are wrong, it ends at once.
    """

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def __call__(self, read: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Read a field."""
        try:
            return read(*args, **named)
        except InvalidField as error:
            self._note(error.violations)
            return cast(T, None)

    def wrong(self, field: str, message: str) -> None:
        """Note that a field is wrong."""
        self._note([Violation(field, message)])

    def _note(self, violations: Iterable[Violation]) -> None:
        self._violations += violations
        if len(self._violations) > MAX_WRONG:
            raise _Refused

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self._violations

    def end(self) -> None:
        """End with what is wrong so far, where there is anything: no other field is looked at."""
        if self._violations:
            raise _Refused

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InvalidField):
            self._violations += error.violations
        if self._violations and (error is None or isinstance(error, InvalidField | NotFound | _Refused)):
            first, *more = self._violations
            raise InvalidField(first.field, first.message, first.reason, more) from None
