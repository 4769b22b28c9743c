"""The report as a picture: for each figure that several contestants have, a bar for each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from benchmarks.contestant import OURS
from benchmarks.figure import FIGURES
from benchmarks.report import Report, shown

WIDTH = 760
LEFT, RIGHT = 100, 700
"""Where bars begin and where the longest may end, in pixels."""
BAR, GAP = 16, 4
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 }
.heading { font-weight: 600 } .small { font-size: 11px; fill: #777 } .end { text-anchor: end }
line { stroke: #ddd } rect { fill: #a9b4c2 } .ours { fill: #2f6fde }
"""


def svg(report: Report) -> str:
    """Return the picture as SVG. Bars grow with the logarithm: between two lines lies a factor of ten."""
    parts: list[str] = []
    top = 20
    for heading, values in _compared(report):
        parts.append(f'<text class="heading" x="10" y="{top}">{escape(heading)}</text>')
        parts += _panel(values, top + 12)
        top += 12 + len(values) * (BAR + GAP) + 38
    note = f'<text class="small" x="10" y="{top}">less is better; between two lines lies a factor of ten</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 10}" width="{WIDTH}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" style="fill:#fff"/>{"".join(parts)}{note}</svg>\n'
    )


def _compared(report: Report) -> Iterator[tuple[str, dict[str, float]]]:
    for figure in FIGURES:
        values = {name: report.figures.get((name, figure.name), 0.0) for name in report.about}
        positive = {name: value for name, value in values.items() if value > 0}
        if len(positive) > 1:
            yield figure.shown, positive


def _panel(values: dict[str, float], top: int) -> Iterator[str]:
    """Draw one figure's bars over lines at the powers of ten."""
    first, last = math.floor(math.log10(min(values.values()))), math.ceil(math.log10(max(values.values())))
    width = (RIGHT - LEFT) / max(1, last - first)
    bottom = top + len(values) * (BAR + GAP)
    for power in range(first, last + 1):
        x = LEFT + (power - first) * width
        yield f'<line x1="{x:.0f}" y1="{top}" x2="{x:.0f}" y2="{bottom}"/>'
        yield f'<text class="small" x="{x:.0f}" y="{bottom + 11}" text-anchor="middle">{10.0**power:g}</text>'
    for name, value in values.items():
        length = max(1.0, (math.log10(value) - first) * width)
        kind = ' class="ours"' if name == OURS else ""
        yield f'<text class="end" x="{LEFT - 8}" y="{top + 13}">{escape(name)}</text>'
        yield f'<rect{kind} x="{LEFT}" y="{top}" width="{length:.0f}" height="{BAR}"/>'
        yield f'<text x="{LEFT + length + 6:.0f}" y="{top + 13}">{shown(value)}</text>'
        top += BAR + GAP
