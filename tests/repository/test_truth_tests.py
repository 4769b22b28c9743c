"""What is empty is never taken for what is absent."""

from __future__ import annotations

from pathlib import Path

from tests.repository.arrows import modules
from tests.repository.truth_tests import found

SAMPLE = """
from collections.abc import Mapping, Sequence


class Sized:
    def __len__(self) -> int:
        return 0


class Plain:
    name: str | None = None


def tests(
    text: str | None, data: bytes | None, count: int | None, number: int | None, amount: float | None,
    flag: bool | None, items: list[int] | None, some: Sequence[str] | Plain | None, table: Mapping[str, int] | None,
    sized: Sized, maybe: Sized | None, plain: Plain | None, sure: str, none: None,
) -> object:
    if text: pass  # seen
    if not text: pass  # seen
    while data: pass  # seen
    assert count  # seen
    a = amount and 1  # seen
    b = text or "default"  # seen
    c = text or ""
    d = (text or data) or b""  # seen
    e = [x for x in [text] if x]  # seen
    f = 1 if flag else 2  # seen
    g = items or ()  # seen
    h = items or []
    i = table or {}
    j = bool(some)  # seen
    if sized: pass  # seen
    if maybe is not None and maybe: pass  # seen
    if plain and plain.name: pass  # seen
    if plain or none or sure: pass
    if text is not None and text == "": pass
    if text is None or not number: pass  # seen
    if (n := number): pass  # seen
    if len(sized) == 0 or plain: pass
    match a:
        case 1 if text: pass  # seen
    return b, c, d, e, f, g, h, i, j, n
"""


def test_nothing_that_may_be_empty_is_tested_for_its_truth() -> None:
    assert [str(one) for one in found(modules())] == []


def test_truth_tests_of_what_may_be_empty_or_absent_are_seen_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE)
    expected = [number for number, line in enumerate(SAMPLE.splitlines(), start=1) if line.endswith("# seen")]
    assert sorted({one.line for one in found({"sample": path})}) == expected
