"""Everything that reaches the terminal: tables, records, JSON, notes and progress.

Text may come from a file or a folder name that somebody else wrote. It is never read as markup, and control characters
are shown, not sent. Rich is imported where it is used, so that help and completion don't pay for it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

# C0 and C1 controls (terminal escapes among them), line separators, and the marks that reverse the direction of text
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FIRST_WIDTH, _TEXT_WIDTH, _GAP = 28, 12, 2


def clean(text: object) -> str:
    """`text` on one line, with control characters as visible escapes: a tab as a space, ESC as `\\x1b`."""
    return _UNSAFE.sub(_escape, str(text))


def text(value: object) -> str:
    """A value as people read it: None as `-`, a flag as yes or no, a float with four digits, a list with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Enum):
        return clean(value.value)
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)}={text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(text(item) for item in value)
    return clean(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows under headings; numbers to the right.

    A column that is too wide is folded, the first one never unless it alone is wide. On a screen too narrow for that,
    each row becomes a block of `heading  value` lines. What is not printed to a terminal is never folded.
    """
    cells = [[text(value) for value in row] for row in rows]
    numeric = [_all_numbers(row[index] for row in rows) for index in range(len(columns))]
    natural = [max(map(_width, [name, *(row[index] for row in cells)])) for index, name in enumerate(columns)]
    limits = [_FIRST_WIDTH, *[_TEXT_WIDTH] * len(columns)]
    least = [
        width if number else min(width, limit) for width, number, limit in zip(natural, numeric, limits, strict=False)
    ]
    console = _console(sum(natural) + _GAP * len(columns))
    if sum(natural) + _GAP * (len(columns) - 1) <= console.width and console.encoding.startswith("utf"):
        _print_lines(console, columns, cells, numeric, natural, title)
        return
    if sum(least) + _GAP * (len(columns) - 1) <= console.width:
        _print_table(console, columns, cells, numeric, least, title)
        return
    if title:
        _print_line(console, title)
    for index, row in enumerate(cells):
        if index:
            console.print()
        _print_record(console, list(zip(columns, row, strict=True)))


def record(mapping: Mapping[str, object]) -> None:
    """Print one `name  value` line for each entry; long values are folded on a terminal."""
    items = [(clean(key), text(value)) for key, value in mapping.items()]
    natural = max((_width(key) + _GAP + _width(value) for key, value in items), default=0)
    _print_record(_console(natural + 1), items)


def emit_json(value: object) -> None:
    """Print `value` as indented JSON with sorted keys; a float that JSON cannot hold becomes null."""
    sys.stdout.write(json.dumps(_plain(value), sort_keys=True, indent=2, allow_nan=False) + "\n")


def line(message: object) -> None:
    """Print one line to standard output, never folded."""
    print(clean(message))


def prose(message: object) -> None:
    """Print a sentence or two to standard output, folded between words on a terminal."""
    from rich.text import Text

    words = clean(message)
    _console(_width(words) + 1).print(Text(words))


def block(text: str) -> None:
    """Print text of several lines to standard output, each as it is but for control characters."""
    for part in text.split("\n"):
        line(part)


def note(message: object, quiet: bool = False) -> None:
    """Print one line to standard error, unless `quiet`."""
    if not quiet:
        print(clean(message), file=sys.stderr, flush=True)


def pointer(source: str, place: int) -> None:
    """Print the line of `source` that holds index `place` to standard error, and a `^` below that letter.

    A line that is wider than the screen is shown around the place.
    """
    from rich.cells import cell_len

    first = source.rfind("\n", 0, place) + 1
    before, after = clean(source[first:place]), clean(source[place:].split("\n")[0])
    room = max(20, shutil.get_terminal_size().columns - 4)
    if len(before) + len(after) > room:
        before = "…" + before[len(before) - room // 2 :] if len(before) > room // 2 else before
        after = after[: max(0, room - len(before))]
    print(f"  {before}{after}\n  {' ' * cell_len(before)}^", file=sys.stderr, flush=True)


def path(value: Path | str) -> str:
    """An absolute path as seen from the working folder, when that is shorter; other text as it is."""
    return min(str(value), os.path.relpath(value), key=len) if Path(value).is_absolute() else str(value)


def percent(mean: float, sd: float) -> str:
    """Fractions as `63.0 ± 0.4`, in percent."""
    return f"{100 * mean:.1f} ± {100 * sd:.1f}"


def duration(seconds: float) -> str:
    """Seconds as `0:07`, `12:03`, `3:02:01` or `2 days, 3:02:01`."""
    if not math.isfinite(seconds):
        return "?"
    value = str(timedelta(seconds=max(0, round(seconds))))
    return value[2:].removeprefix("0") if value.startswith("0:") else value


def count(number: int, one: str, many: str = "") -> str:
    """A number of things as `1 run` or `1,200 runs`; `many` where the plural is not made by an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class Progress:
    """How far a long piece of work is, on standard error.

    A terminal gets one bar that redraws itself, once the work has lasted two seconds; it goes away at the end and stays
    where it was when the work fails. Anything else gets a plain line every ten seconds. Quiet: nothing.

        with Progress(steps, "condense", quiet) as progress:
            for step in range(steps):
                ...
                progress.update(step + 1, loss=loss)
    """

    def __init__(self, total: int, label: str, quiet: bool = False) -> None:
        self._total, self._label = total, clean(label)
        self._terminal = is_terminal(sys.stderr)
        self._wait = 0.25 if self._terminal else 10.0
        self._due = math.inf if quiet else time.monotonic() + (2.0 if self._terminal else 10.0)
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, dict[str, float | str]] = (0, {})
        self._bar: Live | None = None
        self._shown: int | None = None

    def __enter__(self) -> Progress:
        return self

    def update(self, done: int, **fields: float | str) -> None:
        """Say that `done` of the total are done; `fields` are shown beside it. Cheap enough for every step."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        self._last = (done, fields)
        if now >= self._due:
            self._due = now + self._wait
            self._draw(now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.transient = kind is None
            self._bar.stop()
        elif self._shown not in (None, self._last[0]):
            self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        detail = self._detail(now)
        if self._terminal:
            self._bar = self._bar or _start_bar()
            line = _bar_line(self._bar.console, self._label, self._last[0], self._total, detail)
            self._bar.update(line, refresh=True)
        else:
            self._shown = self._last[0]
            note(f"{self._label} {self._last[0]}/{self._total}  {detail}".rstrip())

    def _detail(self, now: float) -> str:
        """Time left, first of all because narrow screens cut the end, and the fields."""
        done, fields = self._last
        start, began = self._first or (0, now)
        parts = [f"{duration((self._total - done) * (now - began) / (done - start))} left"] if done > start else []
        parts += [f"{clean(name).replace('_', ' ')} {text(value)}" for name, value in fields.items()]
        return "  ".join(parts)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if character in "\t\n\r":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _number(value: float) -> str:
    """Four significant digits, without an exponent where people would not write one."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _all_numbers(values: Iterator[object]) -> bool:
    found = [value for value in values if value is not None]
    return bool(found) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a screen that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _width(value: str) -> int:
    from rich.cells import cell_len

    return cell_len(value)


def _console(natural: int) -> Console:
    """A console on standard output; wide enough for everything when it is no terminal."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(natural, console.width)
    return console


def _print_line(console: Console, line: str) -> None:
    from rich.text import Text

    console.print(Text(clean(line), style="bold"))


def _print_lines(
    console: Console,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    widths: Sequence[int],
    title: str,
) -> None:
    """What `_print_table` prints when nothing has to be folded; Rich takes a second for some hundred rows."""
    if title:
        _print_line(console, title)

    def joined(row: Sequence[str]) -> str:
        blanks = [" " * (width - _width(cell)) for width, cell in zip(widths, row, strict=True)]
        parts = (f"{b}{cell}" if right else f"{cell}{b}" for b, cell, right in zip(blanks, row, numeric, strict=True))
        return (" " * _GAP).join(parts)

    _print_line(console, joined([clean(name) for name in columns]))
    rule = "─" * (sum(widths) + _GAP * (len(widths) - 1))
    console.file.write("\n".join([rule, *map(joined, cells), ""]))


def _print_table(
    console: Console,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    least: Sequence[int],
    title: str,
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if title:
        _print_line(console, title)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(columns):
        grid.add_column(
            Text(clean(name)),
            justify="right" if numeric[index] else "left",
            min_width=least[index],
            no_wrap=numeric[index] or index == 0,
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


def _print_record(console: Console, items: Sequence[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(overflow="fold", min_width=min(max((_width(key) for key, _ in items), default=0), _FIRST_WIDTH))
    grid.add_column(overflow="fold")
    for key, value in items:
        grid.add_row(Text(key, style="bold"), Text(value))
    console.print(grid)


def _start_bar() -> Live:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    live = Live(console=console, auto_refresh=False, redirect_stdout=is_terminal(sys.stdout))
    live.start()
    return live


def _bar_line(console: Console, label: str, done: int, total: int, detail: str) -> Text:
    """One line that fits the screen, with room for the ^C that a terminal echoes; the detail is cut first."""
    from rich.text import Text

    room = console.width - 3
    count = f" {done}/{total} "
    label = label[: max(0, room - len(count))]
    left = room - len(label) - len(count)
    width = min(40, room // 4, left - len("0:00:00 left "), max(8, left - len(detail) - 2))
    width = width if width >= 4 else 0
    filled = round(width * min(1.0, done / max(1, total)))
    full, empty = ("━", "─") if console.encoding.startswith("utf") else ("#", "-")
    line = Text.assemble(label, " ", (full * filled, "green"), (empty * (width - filled), "dim"), count, " ", detail)
    line.truncate(room, overflow="crop" if full == "#" else "ellipsis")
    return line


def _plain(value: object) -> Any:
    """`value` out of the types that JSON has."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
