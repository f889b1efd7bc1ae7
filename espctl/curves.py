"""Curves drawn with letters, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve in one line of block characters, lowest to highest."""
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    low, high = min(values), max(values)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[int((value - low) / (high - low) * 7.999)] if high > low else blocks[0] for value in values)


def chart(points: Sequence[tuple[int, float]], height: int = 8, width: int = 60) -> list[str]:
    """Lines that draw fractions over epochs, with the values of the axis in percent at the left."""
    if len(points) > width:
        points = [points[i * (len(points) - 1) // (width - 1)] for i in range(width)]
    low, high = min(v for _, v in points), max(v for _, v in points)
    places = [round((v - low) / (high - low) * (height - 1)) if high > low else 0 for _, v in points]
    lines = []
    for row in reversed(range(height)):
        value = low + (high - low) * row / (height - 1)
        lines.append(f"{100 * value:6.1f} ┤" + "".join("●" if place == row else " " for place in places).rstrip())
    first, last = str(points[0][0]), str(points[-1][0])
    lines.append(" " * 7 + "└" + "─" * len(points))
    lines.append(" " * 8 + first + last.rjust(len(points) - len(first)) + "  epochs")
    return lines
