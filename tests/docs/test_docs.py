"""The pages of docs/ hold: every command and program on them is run here, in an empty folder, as a reader would.

On a page, a block of `console` is run line by line after `$ `; the lines below a command must be among what it prints,
numbers and spaces aside. A block with `title="FILE"` is written to that file, other `python` blocks are executed. A
comment `<!-- not run: REASON -->` before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from espctl import cli

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
GENERATED = ("commands.md", "reliability.md", "schema.md", "settings.md")
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name not in GENERATED)
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]*?) -->\n+)?```(?P<head>[^\n`]+)\n(?P<body>.*?)\n```", re.DOTALL)

NOT_RUN = {
    "report table3": "EfficientNetV2-S trains for minutes; tests/espctl/test_report_tables.py prints it",
    "report figure7": "needs a measurement of minutes; tests/espctl/test_report_tables.py draws one",
    "report figure8": "needs runs with several values of an option; tests/espctl/test_report_tables.py makes them",
    "reproduce": "plans for minutes; tests/espctl/test_reproduce.py runs it",
}
"""Commands that no page runs, with the reason; the pages show them all the same."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    body: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["head"].partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        found.append(Block(language, title[1] if title else "", match["body"], match["reason"]))
    return found


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block of `console`, continued lines joined, and the lines of output below it."""
    text = block.body.replace("\\\n", " ")
    assert text.startswith("$ "), text
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *output = part.splitlines()
        yield line, output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with settings that make results equal and quick, and modules of one's own found."""
    for name in ("ESPCTL_HOME", "ESPCTL_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COMPUTE_DEVICE": "cpu", "COMPUTE_THREADS": "1", "COMPUTE_COMPILE": "off"}.items():
        monkeypatch.setenv(f"ESPCTL_{name}", value)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, folder: Path) -> None:
    before = set(sys.modules)
    for block in blocks(DOCS / page):
        if block.reason is not None:
            continue
        if block.title:
            (folder / block.title).write_text(block.body + "\n", encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.body, page, "exec"), {"__name__": "example"})
        elif block.language == "console":
            for line, output in commands(block):
                _compare(line, run(line), output)
    for name in set(sys.modules) - before:  # a page's own modules: the next page may have one of the same name
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def run(line: str) -> str:
    """Run one command of a page in this process; returns what it prints."""
    words, out, err = shlex.split(line, comments=True), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        match words:
            case ["espctl", *rest]:
                code = cli.run(rest)
            case ["python", program]:
                code = 0 if runpy.run_path(program, run_name="__main__") else 1
            case _:
                pytest.fail(f"a page has a command that the test cannot run: {line}")
    assert code == 0, (line, out.getvalue(), err.getvalue())
    return out.getvalue()


def _compare(line: str, printed: str, shown: list[str]) -> None:
    """What a page shows below a command is what the command prints, apart from numbers; `...` leaves lines out."""
    real = {plain(text) for text in printed.splitlines()}
    missing = [text for text in shown if text.strip() not in ("", "...") and plain(text) not in real]
    assert not missing, f"{line}\n\nshown: {missing}\n\nprinted:\n{printed}"


def plain(text: str) -> str:
    """A line of output without what differs from machine to machine: numbers, hashes, widths of columns."""
    text = re.sub(r"-[0-9a-f]{6,64}\b", "-#", text)
    return " ".join(re.sub(r"─+", "─", re.sub(r"\d[\d.,:]*", "0", text)).split())


def test_plain_keeps_words() -> None:
    assert plain("esp-digits-1-3ee34564  9.2 ± 1.0 ──── ") == plain("esp-digits-1-a9340a37 10.21 ± 3.0  ──")
    assert plain("method esp") != plain("method dm")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    found = blocks(DOCS / page)
    assert all(block.reason is None or len(block.reason) > 5 for block in found)
    languages = {"console", "python", "toml", "text", "mermaid", "json", "latex"}
    assert {block.language for block in found} <= languages


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", TOP / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh() -> None:
    stale = [path.name for path, text in script().pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run scripts/make_docs.py"


def leaves() -> dict[str, Any]:
    """Every command that does something, by its full name, with Typer's object."""
    found: dict[str, Any] = {}
    for name in cli.COMMANDS:
        command = cli.load_command(name)
        children = getattr(command, "commands", {})
        found |= {f"{name} {child}": below for child, below in children.items()}
        if not children or getattr(command, "invoke_without_command", False):
            found[name] = command
    return found


def examples() -> tuple[set[str], set[str]]:
    """Names of the commands that pages run, and of those that they show."""
    ran: set[str] = set()
    shown: set[str] = set()
    for page in PAGES:
        for block in (block for block in blocks(DOCS / page) if block.language == "console"):
            for line, _ in commands(block):
                words = shlex.split(line, comments=True)
                if words[0] == "espctl":
                    names = {" ".join(words[1:3]), words[1]} & leaves_names()
                    (ran if block.reason is None else shown).add(max(names, key=len))
    return ran, shown


def leaves_names() -> set[str]:
    if not _NAMES:
        _NAMES.update(leaves())
    return _NAMES


_NAMES: set[str] = set()


def test_every_command_has_an_example_that_is_run() -> None:
    ran, shown = examples()
    assert ran | shown == leaves_names()
    assert leaves_names() - ran == set(NOT_RUN)


SILENT = {"config path", "report images", "experts rm"}
"""Commands without --json: they print a path, or nothing that a program would read."""


def test_every_reading_command_has_json() -> None:
    without = {
        name for name, command in leaves().items() if not any("--json" in option.opts for option in command.params)
    }
    assert without == SILENT


def test_pages_are_in_the_navigation() -> None:
    nav = (TOP / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f": {path.name}" in nav for path in DOCS.glob("*.md"))


def test_site_builds(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=TOP, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "tutorial.html").is_file()


def test_a_changed_output_is_noticed() -> None:
    _compare("x", "method  esp\nseconds  1.5\n", ["method esp", "...", "seconds 9"])
    with pytest.raises(AssertionError, match="method dm"):
        _compare("x", "method  esp\n", ["method dm"])


def test_json_on_a_page_is_json() -> None:
    for page in PAGES:
        for block in blocks(DOCS / page):
            if block.language == "json":
                json.loads(block.body)
