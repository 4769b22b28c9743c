"""Curves in a picture: panels one below the other, each with a scale from zero and its curves over the turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.plot import LEFT, RIGHT, STYLE, WIDTH
from benchmarks.report import shown

HEIGHT = 160
"""Of a panel, in pixels, without heading and legend."""
COLOURS = ("#2f6fde", "#d9822b", "#3a9d5d", "#8a4fbf")


@dataclass(frozen=True, slots=True)
class Curve:
    """A value over the turns: the n-th of `values` stands over the n-th of `turns`."""

    name: str
    turns: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with one scale, which the heading names."""

    heading: str
    curves: Sequence[Curve]


def svg(panels: Sequence[Panel]) -> str:
    """Return the panels as SVG."""
    parts: list[str] = []
    top = 20
    for panel in panels:
        parts += _drawn(panel, top)
        top += HEIGHT + 30 + 16 * len(panel.curves) + 30
    style = STYLE + "".join(
        f".c{i} {{ stroke: {colour} }} .n{i} {{ fill: {colour} }}" for i, colour in enumerate(COLOURS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}">'
        f"<style>{style} polyline {{ fill: none; stroke-width: 1.5 }}</style>"
        f'<rect width="100%" height="100%" style="fill:#fff"/>{"".join(parts)}</svg>\n'
    )


def _drawn(panel: Panel, top: int) -> Iterator[str]:
    yield f'<text class="heading" x="10" y="{top}">{escape(panel.heading)}</text>'
    most = _round_up(max((value for curve in panel.curves for value in curve.values), default=0.0))
    end = max((turn for curve in panel.curves for turn in curve.turns), default=0.0) or 1.0
    bottom = top + 12 + HEIGHT
    for part in range(5):
        y = bottom - HEIGHT * part / 4
        yield f'<line x1="{LEFT}" y1="{y:.0f}" x2="{RIGHT}" y2="{y:.0f}"/>'
        yield f'<text class="small end" x="{LEFT - 8}" y="{y + 4:.0f}">{shown(most * part / 4)}</text>'
    yield f'<text class="small end" x="{RIGHT}" y="{bottom + 13}">{end:,.0f} turns</text>'
    for i, curve in enumerate(panel.curves):
        points = " ".join(
            f"{LEFT + (RIGHT - LEFT) * turn / end:.1f},{bottom - HEIGHT * value / most:.1f}"
            for turn, value in zip(curve.turns, curve.values, strict=True)
        )
        yield f'<polyline class="c{i}" points="{points}"/>'
        yield f'<text class="n{i}" x="{LEFT}" y="{bottom + 16 * (i + 1) + 4}">{escape(curve.name)}</text>'


def _round_up(value: float) -> float:
    """Return the next number of one figure."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit
