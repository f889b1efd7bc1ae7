"""`espctl doctor`: each thing that can be wrong is made wrong, and named with its remedy."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from espctl.services import doctor
from espctl.services.project import Project as Opened

NAMES = ["python", "torch", "torchvision", "device", "compile", "extras", "home", "disk", "database", "data", "runs"]


def rows(project: Any, name: str = "", code: int = 0) -> list[dict[str, str]]:
    found = project("doctor --fast --json", code=code).json
    return [row for row in found if name in ("", row["name"])]


def test_a_sound_project_has_a_row_for_each_thing(project: Any) -> None:
    found = rows(project)
    assert [row["name"] for row in found] == NAMES
    assert {row["state"] for row in found} == {"ok"}
    assert "digits" in next(row["found"] for row in found if row["name"] == "data")
    assert next(row["found"] for row in found if row["name"] == "runs") == "1 finished, 0 running"


def test_nothing_is_made_in_an_empty_home(tmp_path: Path, project: Any) -> None:
    home = tmp_path / "none"
    done = type(project)(home)("doctor --fast")
    assert done.out.count("\n") >= len(NAMES)
    assert not home.exists()


def test_an_interrupted_run_comes_with_the_line_that_resumes_it(project: Any) -> None:
    run = project.runs("esp")[0]
    (run / "outcome.json").unlink()
    (run / "metrics.jsonl").touch()
    first = rows(project, "runs")[0]
    assert (first["state"], first["found"]) == ("warn", f"{run.name} is interrupted")
    assert first["remedy"] == f"go on: espctl condense --resume {run.name}"
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rows(project, "runs")[0]["found"] == "0 finished, 1 running"


def test_a_damaged_request_is_named(project: Any) -> None:
    (project.runs("esp")[0] / "request.json").write_text("{")
    assert "is not valid JSON" in rows(project, "runs")[0]["found"]


def test_a_damaged_data_set_fails(project: Any) -> None:
    (project.home / "data" / "digits.safetensors").write_bytes(b"x" * 100)
    (row,) = rows(project, "data", code=1)
    assert row["state"] == "fail"
    assert row["remedy"].startswith("run: espctl data fetch digits, or remove ")


def test_a_database_that_is_damaged_or_old_fails(project: Any) -> None:
    database = project.home / "espctl.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.commit()
    (row,) = rows(project, "database", code=1)
    assert (row["state"], row["remedy"]) == ("fail", "run: espctl db upgrade")
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    database.write_bytes(b"not a database at all, but long enough" * 100)
    (row,) = rows(project, "database", code=1)
    assert row["state"] == "fail"
    assert row["remedy"]


def test_a_full_disk_fails(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NO_DISK", shutil.disk_usage(project.home).total + 1)
    (row,) = rows(project, "disk", code=1)
    assert row["state"] == "fail"
    assert "free some space" in row["remedy"]


def test_a_device_that_is_not_there_fails(project: Any) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (project.home / "espctl.toml").write_text('[compute]\ndevice = "cuda:3"\n')
    (row,) = rows(project, "device", code=1)
    assert (row["state"], row["found"]) == ("fail", "the settings want cuda:3, and torch sees no GPU")


def test_a_look_that_fails_becomes_a_row(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Opened) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "_disk", broken)
    found = rows(project, code=1)
    assert [row["name"] for row in found] == NAMES
    assert next(row["found"] for row in found if row["name"] == "disk") == "the disk is full"


def test_a_compiler_that_fails_is_a_warning_unless_it_is_asked(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_COMPILE", "raise SystemExit('no compiler for ' + {device!r})")
    (row,) = [row for row in project("doctor --json").json if row["name"] == "compile"]
    assert row["state"] == "warn"
    assert "no compiler for cpu" in row["found"]
    (project.home / "espctl.toml").write_text('[compute]\ndevice = "cpu"\ncompile = "on"\n')
    (row,) = [row for row in project("doctor --json", code=1).json if row["name"] == "compile"]
    assert (row["state"], row["remedy"]) == ("fail", "install a C++ compiler (g++), or set compute.compile to off")


def test_the_trial_program_is_sound_without_compiling(project: Any) -> None:
    text = doctor._COMPILE.format(device="cpu").replace("torch.compile(", "(")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(8 * (0.8414709848 + 1))


def test_remedies_stand_below_what_they_are_for(project: Any) -> None:
    (project.home / "data" / "digits.safetensors").write_bytes(b"x")
    lines = project("doctor --fast", code=1).out.splitlines()
    index = next(n for n, line in enumerate(lines) if line.startswith("fail  data: "))
    assert lines[index + 1].startswith("      run: espctl data fetch digits")
    assert json.dumps(lines).isascii()
