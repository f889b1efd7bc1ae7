"""`espctl methods`."""

from __future__ import annotations

import json

import pytest

from esp.methods import METHODS, PAPERS
from espctl import cli


def test_every_method_has_a_paper() -> None:
    assert PAPERS.keys() == METHODS.keys()


def test_ls_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "ls", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found.keys() == METHODS.keys()
    assert found["esp"]["needs_experts"]
    assert found["esp"]["options"]["beta"] == 1e-5
    assert not found["dm"]["needs_experts"]


def test_show_has_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "show", "dm"]) == 0
    assert "lr_pixels" in capsys.readouterr().out


def test_unknown_method_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "show", "espp"]) == 1
    assert "did you mean 'esp'?" in capsys.readouterr().err
