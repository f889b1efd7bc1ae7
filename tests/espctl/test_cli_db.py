"""`espctl db`: what it prints and how it exits."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from espctl.cli import run
from espctl.store.models import REVISIONS

GOLDEN = Path(__file__).parents[1] / "golden" / "espctl-0001.db"


def test_upgrade_makes_a_database_and_reads_the_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"method": "esp", "dataset": "digits", "ipc": 1, "seed": 0}
    document = {"id": "a", "key": "k", "created": "2026-01-31T12:00:00Z", "kind": "condense", "request": asked}
    for name, text in (("a", json.dumps(document)), ("b", "{")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "request.json").write_text(text)
    assert run(["db", "upgrade", "--home", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"now has schema {REVISIONS[-1]}" in out
    assert "1 runs added, 0 updated" in out
    assert "not read: b:" in err
    assert run(["db", "upgrade", "--home", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["before"], found["after"], found["runs"]["unchanged"]) == (REVISIONS[-1], REVISIONS[-1], ["a"])


def test_current_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db", "current", "--home", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["revision"], found["head"]) == (None, REVISIONS[-1])
    assert list(tmp_path.iterdir()) == []
    assert run(["db", "check", "--home", str(tmp_path)]) == 1
    assert "hint: run: espctl db upgrade" in capsys.readouterr().err


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Path(shutil.copy(GOLDEN, tmp_path / "espctl.db"))
    assert run(["db", "upgrade", "--home", str(tmp_path)]) == 0
    assert run(["db", "check", "--home", str(tmp_path)]) == 0
    assert "none" in capsys.readouterr().out
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM runs WHERE method = 'esp'")
        connection.commit()
    assert run(["db", "check", "--home", str(tmp_path), "--json"]) == 1
    assert "point at a run that is gone" in json.loads(capsys.readouterr().out)["problems"][0]
