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
    assert "1 run added, 0 updated" in out
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


def test_upgrade_copies_an_old_database_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN, tmp_path / "espctl.db")
    home = ["--home", str(tmp_path)]
    assert run(["runs", "ls", *home]) == 1
    assert "run: espctl db upgrade" in capsys.readouterr().err
    assert run(["db", "upgrade", *home]) == 0
    (copy,) = tmp_path.glob("espctl.db.backup-0001-*")
    assert copy.name in capsys.readouterr().out
    with closing(sqlite3.connect(tmp_path / "espctl.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    for words in (["runs", "ls"], ["db", "upgrade"]):
        assert run([*words, *home]) == 1
        assert copy.name in capsys.readouterr().err


def test_backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert run(["db", "backup", *home]) == 1
    assert "there is no database" in capsys.readouterr().err
    shutil.copy(GOLDEN, tmp_path / "espctl.db")
    assert run(["db", "upgrade", *home]) == 0
    with closing(sqlite3.connect(tmp_path / "espctl.db")) as writer:
        writer.execute("UPDATE runs SET note = 'committed'")
        writer.commit()
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE runs SET note = 'not yet'")
        assert run(["db", "backup", str(tmp_path / "copy.db"), *home]) == 0
        writer.execute("ROLLBACK")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT DISTINCT note FROM runs").fetchall() == [("committed",)]
    capsys.readouterr()
    assert run(["db", "backup", str(tmp_path / "copy.db"), *home]) == 1
    assert "exists already" in capsys.readouterr().err
    for _ in range(2):
        assert run(["db", "backup", *home]) == 0
    assert len(list(tmp_path.glob(f"espctl.db.backup-{REVISIONS[-1]}-*"))) == 2
