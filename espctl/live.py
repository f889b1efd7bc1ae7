"""A screen that is drawn again and again in place, until its user has seen enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from espctl import render

Lines = Sequence[str]


def follow(draw: Callable[[int, int], tuple[Lines, bool]], every: float) -> None:
    """Draw lines on the terminal every so many seconds, until `draw` says that there is nothing more to come.

    Ctrl-C ends it as well, and leaves the last picture. What is not a terminal gets each picture below the former.

    Args:
        draw: (width, height) -> lines that fit, and whether these are the last.
    """
    try:
        if render.is_terminal(sys.stdout):
            _redraw(draw, every)
        else:
            _append(draw, max(every, 10.0))
    except KeyboardInterrupt:
        return


def _redraw(draw: Callable[[int, int], tuple[Lines, bool]], every: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines, last = draw(console.width, console.height - 1)
            text = Text("\n".join(render.clean(line) for line in lines), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)
            if last:
                return
            time.sleep(every)


def _append(draw: Callable[[int, int], tuple[Lines, bool]], every: float) -> None:
    while True:
        lines, last = draw(80, 10_000)
        for line in lines:
            render.line(line)
        sys.stdout.flush()
        if last:
            return
        time.sleep(every)
