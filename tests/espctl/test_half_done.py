"""What a process that died left half done is finished by the next one, or tidied away."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from esp import artifact
from espctl import cli
from espctl.errors import PausedError, StoreError, translate
from espctl.jobs import worker
from espctl.services import expert_work, experts
from espctl.services.project import Project
from espctl.store import migrate, sqlite


def rows(home: Path, table: str) -> int:
    with closing(sqlite3.connect(home / "espctl.db")) as raw:
        return int(raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_a_new_database_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.scripts(), folder)
    last = sorted((folder / "versions").glob("[0-9]*.py"))[-1]
    last.write_text(
        last.read_text().replace("def upgrade() -> None:", "def upgrade() -> None:\n    op.execute('nonsense')")
    )
    with pytest.raises(StoreError):
        migrate.upgrade(tmp_path / "espctl.db", folder=folder)
    assert sqlite.revision(tmp_path / "espctl.db") is None
    assert migrate.upgrade(tmp_path / "espctl.db").before is None
    assert migrate.check(tmp_path / "espctl.db").problems == ()


def test_a_run_that_is_back_but_not_entered_is_restored(project: Any) -> None:
    [run] = project.runs("esp")
    project("runs rm", run.name)
    [gone] = (project.home / "runs/.trash").iterdir()
    gone.rename(run)
    assert f"restored {run.name}" in project("runs restore", run.name).out
    assert rows(project.home, "runs") == 1
    assert "there is no removed run" in project("runs restore", run.name, code=1).err


def test_experts_that_are_here_but_not_entered_come_in_with_the_bundle(project: Any, tmp_path: Path) -> None:
    target = str(tmp_path / "x.tar")
    project("runs export --all --with-experts --output", target)
    with closing(sqlite3.connect(project.home / "espctl.db")) as raw, raw:
        raw.execute("DELETE FROM experts")
    assert "here already" in project("runs import", target).out
    assert rows(project.home, "experts") == 2


def test_what_was_written_aside_is_found_wherever_it_comes_from(project: Any) -> None:
    [run], [store] = project.runs("esp"), (project.home / "experts").iterdir()
    left = [run / ".tmpAbC123", store / ".tmpAbC123", project.home / ".espctl.db.backup-0001.x.tmp-wal"]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 3600,) * 2)
    found = {item["path"] for item in project("runs gc --dry-run --json").json["items"]}
    assert found >= {str(path) for path in left}
    project("runs gc --yes")
    assert not any(path.exists() for path in left)


def test_a_step_that_nobody_saw_is_watched_again(project: Any) -> None:
    [run] = project.runs("esp")
    for name in ("outcome.json", "synthetic.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    seen: list[int] = []

    def watch(_: Any, state: Any) -> None:
        seen.append(int(state["step"]))
        if seen == [0, 1, 2] or seen == [1, 2]:
            raise KeyboardInterrupt

    where = run, project.home / "data", project.home
    with pytest.raises(KeyboardInterrupt):
        worker.work(*where, 0.0, lambda *_: None, watch)
    assert artifact.load(run / "checkpoint.safetensors").meta["step"] == 1
    worker.work(*where, 0.0, lambda *_: None, watch)
    assert [step for step in seen if step] == [1, 2, 2, 3, 4, 5, 6]


def test_what_an_expert_cost_is_written_before_the_expert(project: Any) -> None:
    [store] = (project.home / "experts").iterdir()
    for path in store.glob("expert-0001.*"):
        path.unlink()
    opened = Project.open({"home": str(project.home)})
    _, [item] = experts.prepare(opened, experts.BuildRequest("digits"))

    def stop(event: dict[str, Any]) -> None:
        if event["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expert_work.train([item], stop)
    assert (store / "expert-0001.json").exists()
    assert not (store / "expert-0001.safetensors").exists()
    cost = (store / "expert-0001.json").read_bytes()
    expert_work.train([item], lambda _: None)
    assert (store / "expert-0001.json").read_bytes() == cost


def test_an_interrupt_while_a_selection_is_made_names_the_score_that_was_asked_for(
    project: Any, launch: Any, wait_until: Any
) -> None:
    [run] = project.runs("esp")
    process = launch(project, f"evaluate {run.name} --epochs 1")
    wait_until(lambda: list((project.home / "runs").glob("random-*/request.json")), "no selection is made")
    process.kill(signal.SIGTERM)
    done = process.wait()
    if done.code == 130:  # the selection takes milliseconds; whatever is stopped, the same line goes on
        assert done.err.endswith("error: interrupted\nhint: run the same command again to go on\n")
    project(f"evaluate {run.name} --epochs 1")
    assert len(list((project.home / "runs").glob("random-*"))) == 1


def test_a_study_that_cannot_be_written_says_why() -> None:
    from optuna.exceptions import StorageInternalError

    for cause, kind in (
        (sqlite3.OperationalError("database or disk is full"), StoreError),
        (OSError(5, "x"), PausedError),
    ):
        error = StorageInternalError("An exception is raised during the commit.")
        error.__cause__ = cause
        assert isinstance(translate(error), kind)
        assert "unexpected" not in translate(error).message


def test_ctrl_c_when_the_work_is_done_ends_without_a_traceback() -> None:
    late = "import atexit, os, time; atexit.register(lambda: (os.kill(os.getpid(), 2), time.sleep(5)));"
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    code = f"{begin} {late} from espctl import cli; cli.main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


def test_an_interrupt_before_a_command_begins_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "stopped_early.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "stopped", ("stopped_early:app", "Is interrupted while it is imported."))
    assert cli.run(["stopped"]) == 130
    assert capsys.readouterr().err == "error: interrupted\nhint: run the same command again to go on\n"


def test_the_folder_of_a_request_that_was_never_written_is_used(project: Any) -> None:
    words = "condense --dataset digits --ipc 1 --method random --seed 3"
    made = project(words, "--json").json["id"]
    shutil.rmtree(project.home / "runs" / made)
    project("runs rm", made)
    folder = project.home / "runs" / made
    folder.mkdir()
    (folder / "patch.diff").write_text("half")
    (folder / ".request.json.x.tmp").write_text("half")
    assert project(words, "--json").json["id"] == made
    assert not (folder / ".request.json.x.tmp").exists()
