import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espctl import render

ESCAPE = "\x1b"


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float
    where: Path


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


@given(st.text())
def test_clean_text_is_one_line_without_controls(text: str) -> None:
    shown = render.clean(text)
    assert shown.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_escapes_are_shown_and_not_sent() -> None:
    assert render.clean(f"a{ESCAPE}[31mb\tc\x07\u202e\udcff") == "a\\x1b[31mb c\\x07\\u202e\\udcff"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (7, "7"),
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        (1e-7, "1e-07"),
        (float("nan"), "nan"),
        (Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        ([1, None, "x"], "1, -, x"),
        ({"beta": 1e-5, f"k{ESCAPE}": 2}, "beta=1e-05, k\\x1b=2"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02 03:04:05+00:00"),
    ],
)
def test_values_as_people_read_them(value: object, shown: str) -> None:
    assert render.text(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7.4, "0:07"), (723, "12:03"), (10921, "3:02:01"), (183721, "2 days, 3:02:01"), (float("inf"), "?")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert render.duration(seconds) == shown


def test_a_table_that_nobody_looks_at_is_not_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "word " * 60 + "end"
    render.table(("name", "loss", "note"), [("a", 0.5, long), ("bb", 12.25, "[bold]x[/bold] :smile:")], title="Two")
    title, head, rule, first, second = capsys.readouterr().out.splitlines()
    assert (title.strip(), head.split(), set(rule)) == ("Two", ["name", "loss", "note"], {"─"})
    assert first.rstrip().endswith(f" 0.5  {long}")
    assert second.rstrip().endswith("12.25  [bold]x[/bold] :smile:")
    assert first.index("0.5") + 3 == second.index("12.25") + 5


@pytest.mark.usefixtures("narrow")
def test_a_narrow_screen_folds_text_and_never_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(("run", "steps", "note"), [("esp-digits-1-3fa9", 123456, "one two three four five six")])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert "esp-digits-1-3fa9" in lines[2]
    assert "123456" in lines[2]
    assert len(lines) > 3


@pytest.mark.usefixtures("narrow")
def test_a_screen_too_narrow_for_the_columns_gets_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("run", "method", "data set", "accuracy", "state")
    render.table(columns, [("esp-digits-1-3fa94c21", "esp", "digits", 93.5, "finished")] * 2, title="Runs")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    block = [
        "run       esp-digits-1-3fa94c21",
        "method    esp",
        "data set  digits",
        "accuracy  93.5",
        "state     finished",
    ]
    assert lines == ["Runs", *block, "", *block]


def test_a_table_without_rows_still_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(("a", "b"), [])
    assert capsys.readouterr().out.split()[:2] == ["a", "b"]


def test_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    render.record({"run": "x", f"evil{ESCAPE}]0;t\x07": f"{ESCAPE}[2J[red]", "none": None})
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["run               x", "evil\\x1b]0;t\\x07  \\x1b[2J[red]", "none              -"]


def test_json_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    value = {"b": [Point(float("nan"), Path("p"))], "a": {3, 1}, "c": Colour.RED, "d": (when, None, True, "\udcff")}
    render.emit_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == {
        "a": [1, 3],
        "b": [{"x": None, "where": "p"}],
        "c": "red",
        "d": ["2026-01-02T00:00:00+00:00", None, True, "\udcff"],
    }
    assert out.index('"a"') < out.index('"b"')
    assert out.isascii()
    with pytest.raises(TypeError, match="object has no JSON form"):
        render.emit_json(object())


def test_notes_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    render.note("one\ntwo")
    render.note("three", quiet=True)
    render.line("four")
    assert capsys.readouterr() == ("four\n", "one two\n")


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("espctl.render.time.monotonic", found)
    return found


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_without_a_terminal_is_a_line_every_ten_seconds(
    quiet: bool, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with render.Progress(100, "train", quiet) as progress:
        for done in range(1, 36):
            clock.now += 1.0
            progress.update(done, loss=0.5, images_per_s=1234.0, note=f"{ESCAPE}[31m")
    lines = capsys.readouterr().err.splitlines()
    if quiet:
        assert lines == []
        return
    assert [line.split("  ")[0] for line in lines] == ["train 10/100", "train 20/100", "train 30/100", "train 35/100"]
    assert lines[0] == "train 10/100  1:30 left  loss 0.5  images per s 1234  note \\x1b[31m"


def test_progress_of_a_resumed_run_judges_speed_by_what_it_did_itself(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with render.Progress(1000, "condense") as progress:
        progress.update(900)
        clock.now += 10
        progress.update(910)
    assert capsys.readouterr().err.splitlines()[0] == "condense 910/1000  1:30 left"


def test_short_work_shows_no_progress(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with render.Progress(2, "x") as progress:
        clock.now += 9
        progress.update(2)
    assert capsys.readouterr().err == ""


def test_an_update_costs_less_than_50_microseconds() -> None:
    progress = render.Progress(10**6, "x", quiet=True)
    loud = render.Progress(10**6, "x")
    for shown in (progress, loud):
        began = time.perf_counter()
        for done in range(2000):
            shown.update(done, loss=1.0, images_per_s=3.0)
        assert (time.perf_counter() - began) / 2000 < 50e-6


PROGRAM = """
import sys, time
from espctl.render import Progress, note
try:
    with Progress(40, "condense digits") as progress:
        for step in range(int(sys.argv[1])):
            time.sleep(0.1)
            progress.update(step + 1, loss=0.25, images_per_s=1234.5, memory="1.2 GB")
            if step == 22:
                note("a note")
            if step == 26 and sys.argv[2] == "fail":
                raise SystemExit(1)
finally:
    print("end", flush=True)
"""


def on_a_terminal(columns: int, *arguments: str) -> str:
    """What a program sends to a terminal of that width."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    sent = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            sent += os.read(ours, 4096)
        except OSError:  # the program has closed its end
            break
    process.wait(20)
    os.close(ours)
    return sent.decode()


@pytest.mark.parametrize(("columns", "end"), [(100, "done"), (40, "fail")])
def test_progress_on_a_terminal(columns: int, end: str) -> None:
    sent = on_a_terminal(columns, "28", end)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)
    drawn = [line for line in re.split(r"[\r\n]+", plain) if "/40" in line]
    assert drawn
    assert all(len(line) <= columns for line in drawn)
    assert all("condense digits" in line and " left" in line for line in drawn)
    assert not [
        line for line in drawn if int(re.findall(r"(\d+)/40", line)[0]) < 18
    ]  # nothing in the first two seconds
    assert "a note" in plain
    assert sent.rindex(f"{ESCAPE}[?25h") > sent.rindex(f"{ESCAPE}[?25l")  # the cursor is back
    after = sent[sent.rindex("/40") : sent.rindex("end")]
    assert (f"{ESCAPE}[1A" in after) == (end == "done")  # wiped when done, left standing when failed


def test_rich_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, espctl.render; sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_colour_is_respected(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name, coloured in (("NO_COLOR", False), ("UNUSED", True)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv(name, "1")
        line: Any = render._bar_line(render._console(10), "x", 1, 2, "y")
        render._console(10).print(line)
        assert (re.search(r"\x1b\[[0-9;]*3[0-9]m", capsys.readouterr().out) is not None) == coloured


@pytest.mark.parametrize("rows", [[], [("a", 1, "日本"), ("bcd", 22, None)]])
def test_a_table_that_fits_looks_as_rich_draws_it(rows: list[tuple[object, ...]]) -> None:
    from rich.console import Console

    cells = [[render.text(value) for value in row] for row in rows]
    widths = [max(len("run"), *(len(row[0]) for row in cells), 0), 2 if rows else 1, 4 if rows else 1]
    drawn = []
    for draw in (render._print_lines, render._print_table):
        text = io.StringIO()
        draw(Console(file=text, width=80), ("run", "n", "x"), cells, [False, bool(rows), False], widths, "title")
        drawn.append(text.getvalue())
    assert drawn[0] == drawn[1]


def test_a_place_is_pointed_at(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    for source, place in (("a=1 b", 4), ("日本=1 b", 5), ("a\x1b b", 3), ("one\ntwo b", 8), ("x" * 100 + "b", 100)):
        render.pointer(source, place)
        shown, mark = capsys.readouterr().err.splitlines()
        from rich.cells import cell_len

        assert cell_len(shown) <= 30
        assert cell_len(shown[: shown.rindex("b")]) == mark.index("^")
