"""A corpus of bad input: every case gets one sentence and a remedy, and changes nothing.

A case is a tuple (what is spoilt, the command, what the sentence must say). `{home}`, `{tmp}` and `{run}` in a command
stand for the project, a folder of the case's own, and the finished run.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _neighbour(path: Path) -> ModuleType:
    """The module of a file: test folders are no packages."""
    spec = importlib.util.spec_from_file_location(f"bad_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_programs = _neighbour(Path(__file__).parents[1] / "espctl" / "conftest.py")
finished = _programs.finished
_clean_environment = _programs._clean_environment


def content(home: Path) -> dict[str, bytes | str]:
    """What lies in a project, less the database and locks, which every command may touch."""
    found: dict[str, bytes | str] = {}
    for path in home.rglob("*"):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file() and not path.name.startswith(("espctl.db", "lock", "optuna.db")):
            found[str(path)] = path.read_bytes()
    return found


def complains(done: Any, message: str) -> None:
    """One `error:` sentence that says `message`, one `hint:`, no traceback, and nothing that a terminal would obey."""
    lines = done.err.splitlines()
    while lines and not lines[0].startswith("error: "):  # notes of a command that had begun
        assert lines.pop(0).startswith(("note: ", "warning: ")), done
    if len(lines) == 4:  # what was typed, and a mark below the letter where it is wrong
        assert lines.pop(2).strip() == "^"
        del lines[1]
    assert len(lines) == 2, done
    assert message in lines[0], lines[0]
    assert not lines[0].endswith("."), lines[0]
    assert not lines[0].startswith("error: unexpected "), lines[0]
    assert len(lines[0]) < 1500, lines[0]
    assert lines[1].startswith("hint: ")
    assert len(lines[1]) > len("hint: ")
    assert "Traceback" not in done.err + done.out
    assert not UNSAFE.search(done.err + done.out), done


@pytest.fixture(scope="session")
def untouched(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A project that commands are given which must change nothing in it."""
    project = finished.copy(tmp_path_factory.mktemp("bad") / "project")
    before = content(project.home)
    yield project
    assert content(project.home) == before


@pytest.fixture
def refused(finished: Any, untouched: Any, tmp_path: Path) -> Callable[..., None]:
    """Give a command to a project, spoilt first if the case spoils anything, and see that it is refused."""

    def refuse(spoil: Any, words: str | tuple[str, ...], message: str, code: int = 1) -> None:
        project = untouched if spoil is None else finished.copy(tmp_path / "project")
        [run] = project.runs("esp")
        if spoil is not None:
            spoil(project.home, tmp_path)
        listed = words.split() if isinstance(words, str) else list(words)
        names = {"{home}": str(project.home), "{tmp}": str(tmp_path), "{run}": run.name}
        for name, value in names.items():
            listed = [word.replace(name, value) for word in listed]
        before = content(project.home)
        done = project(listed[0], *listed[1:], code=code)
        complains(done, message)
        assert content(project.home) == before

    return refuse
