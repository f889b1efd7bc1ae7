"""Curves as inline SVG, coloured by the classes of the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 190
COLOURS = ("#0a58b5", "#c2410c", "#15803d", "#9333ea", "#b91c5c", "#0e7490", "#854d0e", "#475569", "#4d7c0f")
"""Of curves on a light ground; page.css has those for a dark one."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) in order of x.

    Attributes:
        dashed: for what was not measured here: published, or estimated.
        spread: standard deviation of each point; empty where none is drawn.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False
    colour: int = 0
    spread: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Curves over one axis.

    Attributes:
        caption: where they come from.
        logarithmic: whether x is drawn so.
        names: what stands at x = 0, 1, ... where x is no number.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    caption: str = ""
    logarithmic: bool = False
    names: tuple[str, ...] = ()


def draw(chart: Chart) -> str:
    """An `<svg>` element of a chart; x is logarithmic where the chart says so."""
    points = [point for line in chart.lines for point in line.points]
    spread = [(y - sd, y + sd) for line in chart.lines for (_, y), sd in zip(line.points, line.spread, strict=False)]
    across = _axis([_place(x, chart.logarithmic) for x, _ in points], _LEFT, WIDTH - _RIGHT)
    heights = [y for _, y in points] + [end for ends in spread for end in ends]
    up = _axis(heights, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>',
        *_ticks(chart, points, heights),
    ]
    for line in chart.lines:
        path = " ".join(f"{across(_place(x, chart.logarithmic)):.1f},{up(y):.1f}" for x, y in line.points)
        dash = " dash" if line.dashed else ""
        parts.append(f'<polyline class="line s{line.colour % len(COLOURS)}{dash}" points="{path}"/>')
        for (x, y), sd in zip(line.points, line.spread, strict=False):
            place = across(_place(x, chart.logarithmic))
            bar = f"M{place:.1f} {up(y - sd):.1f}V{up(y + sd):.1f}"
            parts.append(f'<path class="line s{line.colour % len(COLOURS)}" d="{bar}"/>')
        if len(line.points) <= len(COLOURS) + 2:
            parts += [
                f'<circle class="s{line.colour % len(COLOURS)}" fill="none" r="3" '
                f'cx="{across(_place(x, chart.logarithmic)):.1f}" cy="{up(y):.1f}"/>'
                for x, y in line.points
            ]
    return "".join([*parts, "</svg>"])


def key(chart: Chart) -> str:
    """What the colours stand for."""
    return "".join(
        f'<span class="key"><svg viewBox="0 0 24 8" aria-hidden="true"><path class="line s{line.colour % len(COLOURS)}'
        f'{" dash" if line.dashed else ""}" d="M0 4H24"/></svg> {escape(line.label)}</span>'
        for line in chart.lines
    )


def short(value: float) -> str:
    """A number in few characters."""
    if value and not 0.001 <= abs(value) < 100_000:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _ticks(chart: Chart, points: Sequence[tuple[float, float]], heights: Sequence[float]) -> list[str]:
    low, high = min(heights), max(heights)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    bottom = HEIGHT - _BOTTOM
    found = [
        f'<text x="{_LEFT - 5}" y="{_TOP + 8}" text-anchor="end">{short(high)}</text>',
        f'<text x="{_LEFT}" y="{bottom + 14}">{_named(chart, first)}</text>',
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x)}</text>',
    ]
    if high > low:
        found.append(f'<text x="{_LEFT - 5}" y="{bottom}" text-anchor="end">{short(low)}</text>')
    if last > first:
        found.append(f'<text x="{WIDTH - _RIGHT}" y="{bottom + 14}" text-anchor="end">{_named(chart, last)}</text>')
    return found


def _named(chart: Chart, x: float) -> str:
    return escape(chart.names[round(x)]) if chart.names else short(x)


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """From values to places between two ends; equal values lie in the middle."""
    low, high = min(values), max(values)
    return lambda value: start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _place(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value
