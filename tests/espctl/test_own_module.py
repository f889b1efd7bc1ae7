"""A method or network of the user's own that fails is named with its line, and is no defect of espctl."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class Method:
    steps: int = 3
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def check(self, task):
        pass

    def init(self, task, key):
        return task.start("auto", key)

    def step(self, task, state, key):
        return {}["the line of the step"], {}


class Network(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.last = nn.Linear(4, classes)

    def features(self, images):
        raise ZeroDivisionError("the line of the network")

    def forward(self, images):
        return self.last(self.features(images))


def network(shape, classes, width: int = 3):
    return Network(shape, classes)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "modules/own_and_broken.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(path.parent))
    yield path
    sys.modules.pop("own_and_broken", None)


def line_of(words: str) -> int:
    return next(number for number, line in enumerate(MODULE.splitlines(), 1) if words in line)


def test_a_method_that_raises_is_named_with_its_line(project: Any, module: Path) -> None:
    done = project("condense -d digits --ipc 1 -m own_and_broken:Method", code=1)
    assert f"error: line {line_of('of the step')} of {module} raised KeyError: 'the line of the step'" in done.err
    assert "defect" not in done.err
    [run] = project("runs ls state=failed --json").json
    assert "own_and_broken.py raised KeyError" in run["error"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_network_that_raises_is_named_with_its_line_also_by_another_process(
    project: Any, module: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(module.parent))
    words = "evaluate esp --network own_and_broken:network --epochs 1 --seeds 2 --no-baseline --jobs"
    done = project(words, jobs, code=1)
    assert f"error: line {line_of('of the network')} of {module} raised ZeroDivisionError" in done.err


def test_a_module_that_raises_when_it_is_imported_is_named_with_its_line(project: Any, module: Path) -> None:
    module.write_text("\n1 / 0\n")
    done = project("condense -d digits --ipc 1 -m own_and_broken:Method", code=1)
    assert f"error: line 2 of {module} raised ZeroDivisionError: division by zero" in done.err
