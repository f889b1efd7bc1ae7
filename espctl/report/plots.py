"""Charts as PNG files, drawn by matplotlib, which is an extra."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp import files
from esp.errors import InputError
from espctl.report.svg import COLOURS, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 4
"""Lines whose legend fits inside; of more it stands below."""


def save(path: Path, charts: Sequence[Chart]) -> None:
    """Draw charts side by side into a PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing a figure needs matplotlib", "pip install 'esp-condense[plots]'") from error
    below = max((0.1 * len(chart.lines) for chart in charts if len(chart.lines) > FEW), default=0.0)
    figure = Figure(figsize=(5.2 * len(charts), 4.0 + below), dpi=150, layout="constrained")
    for place, chart in enumerate(charts, start=1):
        _draw(figure.add_subplot(1, len(charts), place), chart)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())


def _draw(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        x, y = [point[0] for point in line.points], [point[1] for point in line.points]
        style: dict[str, Any] = {
            "color": COLOURS[line.colour % len(COLOURS)],
            "linestyle": "--" if line.dashed else "-",
            "marker": "o",
            "markersize": 4,
            "markerfacecolor": "white" if line.dashed else None,
        }
        if line.spread:
            axes.errorbar(x, y, yerr=line.spread, capsize=3, label=_plain(line.label), **style)
        else:
            axes.plot(x, y, label=_plain(line.label), **style)
    if chart.logarithmic:
        axes.set_xscale("log")
    if chart.names:
        axes.set_xticks(range(len(chart.names)), [_plain(name) for name in chart.names])
    values = [point[1] for line in chart.lines for point in line.points]
    if not any(line.spread for line in chart.lines) and min(values) > 0 and math.log10(max(values) / min(values)) > 1.5:
        axes.set_yscale("log")
    axes.set_title(_plain(chart.title), fontsize=11)
    axes.set_xlabel(_plain(chart.x))
    axes.set_ylabel(_plain(chart.y))
    axes.grid(alpha=0.25)
    if len(chart.lines) <= FEW:
        axes.legend(fontsize=8)
    else:
        axes.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
