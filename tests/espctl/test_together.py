"""Processes that work on one project at the same time: nothing is lost, and what two ask for is made once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espctl.errors import RunError
from espctl.jobs import locks
from espctl.services import bundles, condense, gc, removal
from espctl.services.project import Project as Opened
from espctl.store import collect, labels
from espctl.store import folder as folders
from espctl.store import runs as store_runs

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from espctl.jobs import locks
with locks.claim([Path(sys.argv[1])]) if sys.argv[2] == "claim" else locks.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_writers_lose_nothing_and_make_things_once() -> None:
    """A few operations; `make torture` does two thousand."""
    words = ["--writers", "4", "--operations", "60", "--seed", "3", "--once", "run", "--once", "evaluate"]
    command = [sys.executable, "-m", "tests.torture.together", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 writers, 60 operations" in done.stdout
    assert "0 problems" in done.stdout


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that holds a folder, or claims a file, until its input is closed."""
    made = []

    def start(path: Path, how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), how], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in made:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_who_claims_a_file_waits_for_the_other_and_hears_of_it(tmp_path: Path, holder: Any) -> None:
    other = holder(tmp_path / "a.json", "claim")
    told: list[str] = []
    with locks.claim([tmp_path / "b.json"], told.append):
        assert told == [], "a file of another name is free"
    with pytest.raises(RunError, match="another process is working in"):
        locks.require_unclaimed(tmp_path)
    threading.Timer(0.3, other.stdin.close).start()
    begun = time.monotonic()
    with locks.claim([tmp_path / "b.json", tmp_path / "a.json"], told.append):
        assert time.monotonic() - begun > 0.2
    assert told == ["a.json"]
    locks.require_unclaimed(tmp_path)


def test_a_held_folder_is_waited_for_as_long_as_was_said(tmp_path: Path, holder: Any) -> None:
    other = holder(tmp_path, "hold")
    with locks.glance(tmp_path) as free:
        assert not free
    with pytest.raises(RunError, match="another process is working on"), locks.hold(tmp_path, wait=0.1):
        pass
    with pytest.raises(RunError, match="another process"), locks.hold(tmp_path, shared=True, wait=0.1):
        pass
    threading.Timer(0.2, other.stdin.close).start()
    told: list[str] = []
    with locks.hold(tmp_path, wait=None, on_wait=told.append):
        assert told == [tmp_path.name]
        with pytest.raises(RunError, match="another process"), locks.hold(tmp_path, wait=0.0):
            pass
    with locks.glance(tmp_path) as free:
        assert free
        with pytest.raises(RunError, match="another process"), locks.hold(tmp_path, wait=0.0):
            pass
    with locks.hold(tmp_path, shared=True), locks.hold(tmp_path, shared=True):
        pass


def test_a_folder_that_was_moved_away_is_not_held(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RunError, match="was removed by another process"), locks.hold(tmp_path / "none"):
        pass
    with locks.hold(folder):
        waiting = threading.Thread(target=lambda: told.append(removed(folder)))
        told: list[str] = []
        waiting.start()
        time.sleep(0.2)
        folder.rename(tmp_path / "trash")
    waiting.join()
    assert "was removed by another process" in told[0]


def removed(folder: Path) -> str:
    try:
        with locks.hold(folder, wait=None):
            return "held"
    except RunError as error:
        return error.message


def test_a_run_that_is_just_being_made_is_waited_for(project: Any, launch: Any, wait_until: Any) -> None:
    words = "condense -d digits --ipc 1 -m dm --set steps=40 --set real_batch=8 --json"
    first = launch(project, words)
    wait_until(lambda: project.runs("dm"), "the run is not begun")
    done = project(words)
    assert first.wait().code == 0
    assert "another process is making dm-digits-1-" in done.err or "has done exactly this already" in done.err
    [run] = project.runs("dm")
    assert done.json["id"] == run.name


def test_a_run_that_ended_since_it_was_looked_at_is_not_said_to_be_running(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "condense -d digits --ipc 1 -m dm --set steps=1 --set real_batch=8 --json"
    done = project(words)
    [run] = store_runs.list_runs(Opened.open({"home": project.home}).store, {"method": "dm"})
    monkeypatch.setattr(condense, "existing", lambda *_: replace(run, state="running"))
    assert project(words).json == done.json


def test_a_run_that_is_entered_has_its_lock(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one who asks for it too could see it begin after having found that nobody works on it."""
    seen: list[set[str]] = []
    carry_out = condense.carry_out

    def entered(opened: Opened, run: str, *rest: Any) -> Any:
        seen.append({path.name for path in opened.folder_of(run).iterdir()})
        return carry_out(opened, run, *rest)

    monkeypatch.setattr(condense, "carry_out", entered)
    project("condense -d digits --ipc 1 -m dm --set steps=1 --set real_batch=8")
    assert len(seen) == 1
    assert seen[0] >= {"lock", "request.json"}


def is_claimed(folder: Path) -> bool:
    try:
        locks.require_unclaimed(folder)
    except RunError:
        return True
    return False


def test_a_score_that_is_just_being_made_is_taken_over(project: Any, launch: Any, wait_until: Any) -> None:
    [run] = project.runs("esp")
    words = f"evaluate {run.name} --epochs 150 --seeds 1 --no-baseline --json"
    first = launch(project, words)
    wait_until(lambda: is_claimed(run / "evaluations"), "no score is begun")
    with pytest.raises(RunError, match="another process is working on"):
        removal.remove(Opened.open({"home": project.home}), [run.name])
    done = project(words)
    assert first.wait().json == done.json
    [path] = run.glob("evaluations/*.json")
    assert json.loads(path.read_text())["epochs"] == 150


def esp_run(project: Opened) -> str:
    return store_runs.list_runs(project.store, {"method": "esp"})[0].id


def test_a_run_that_is_removed_while_the_folders_are_read_is_not_entered_again(generated: Any) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    contents = folders.read(project.folder_of(run), project.home)
    removal.remove(project, [run])
    assert collect._sync_some(project.store, [contents]) == {}
    assert run not in {found.id for found in store_runs.list_runs(project.store)}


def test_what_is_read_in_a_snapshot_is_of_one_moment(generated: Any) -> None:
    project = Opened.open({"home": generated.home})
    other = Opened.open({"home": generated.home})
    with project.store.snapshot():
        runs = store_runs.list_runs(project.store)
        removal.remove(other, [esp_run(other)], force=True)
        assert set(store_runs.requests_of(project.store, [run.id for run in runs])) == {run.id for run in runs}
    assert store_runs.count_runs(project.store) == len(runs) - 1


def test_the_id_of_a_removed_run_is_not_the_beginning_of_another(generated: Any) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    folder = project.folder_of(run)
    again = folder.with_name(f"{run}-2")
    again.mkdir()
    text = (folder / "request.json").read_text()
    (again / "request.json").write_text(text.replace(run, again.name))
    collect.sync(project.store, project.paths.runs)
    generated(f"runs rm {run}")
    assert "there is no run" in generated(f"runs rm {run}", code=1).err
    assert store_runs.find_run(project.store, again.name[: len(run) - 1]).id == again.name, "a beginning may be one"
    assert store_runs.find_run(project.store, again.name).id == again.name


def test_a_row_that_came_back_between_the_two_halves_of_a_removal_goes_again(generated: Any) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    store_runs.forget_moved(project.store, run)
    assert store_runs.find_run(project.store, run).id == run, "its folder is there"
    project.folder_of(run).rename(generated.home / "elsewhere")
    store_runs.forget_moved(project.store, run)
    with pytest.raises(RunError):
        store_runs.find_run(project.store, run)
    assert store_runs.count_runs(project.store) == 4


def test_what_gc_is_deleting_cannot_be_restored_by_half(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    removal.remove(project, [run])
    found = gc.find(project).items
    restored = removal.restore(project, run)
    assert gc.remove(found).items == (), "somebody restored it"
    assert restored.id == run
    assert (project.folder_of(run) / "outcome.json").is_file()
    left = generated.home / "runs/.trash/.x@20260101T000000000000.tmp"
    left.mkdir(parents=True)
    monkeypatch.setattr(gc, "FRESH_SECONDS", -1.0)
    assert [item.path for item in gc.find(project).items if item.kind == "temporary"] == [left]


def test_a_removed_run_does_not_come_back_into_one_that_begins(generated: Any) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    request = json.loads((project.folder_of(run) / "request.json").read_text())
    [gone] = removal.remove(project, [run])
    told: list[str] = []

    def restore() -> None:
        with pytest.raises(RunError) as caught:
            removal.restore(Opened.open({"home": generated.home}), run)
        told.append(caught.value.message)

    def write(folder: Path) -> Any:
        waiting.start()
        waiting.join(0.3)  # who comes between looking and writing has the time to
        folder.mkdir()
        (folder / "request.json").write_text(json.dumps(request))
        return request

    waiting = threading.Thread(target=restore)
    store_runs.begin_run(project.store, project.paths.runs, run, request["key"], write, again=True)
    waiting.join()
    assert told == [f"there is a run {run} again"]
    assert gone.trash is not None
    assert (gone.trash / "outcome.json").is_file()


def test_an_imported_run_does_not_come_into_one_that_begins(generated: Any, tmp_path: Path) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    request = json.loads((project.folder_of(run) / "request.json").read_text())
    generated(f"runs export {run} -o {tmp_path}/one.tar")
    removal.remove(project, [run])
    told: list[str] = []

    def take_in() -> None:
        with pytest.raises(RunError) as caught:
            bundles.take_in(Opened.open({"home": generated.home}), tmp_path / "one.tar")
        told.append(caught.value.message)

    def write(folder: Path) -> Any:
        waiting.start()
        waiting.join(0.5)  # who comes between looking and writing has the time to
        folder.mkdir()
        (folder / "request.json").write_text(json.dumps(request))
        return request

    waiting = threading.Thread(target=take_in)
    store_runs.begin_run(project.store, project.paths.runs, run, request["key"], write, again=True)
    waiting.join()
    assert told == [f"{project.folder_of(run)} was made in the meantime"]
    assert not (project.folder_of(run) / "outcome.json").exists()


def test_a_removed_run_is_brought_back_by_one(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    removal.remove(project, [run])
    told: list[str] = []

    def restore() -> None:
        with pytest.raises(RunError) as caught:
            removal.restore(Opened.open({"home": generated.home}), run)
        told.append(caught.value.message)

    def moved(*asked: Any) -> None:
        bring_back(*asked)
        waiting.start()
        waiting.join(0.3)  # who comes between moving and entering has the time to

    waiting, bring_back = threading.Thread(target=restore), removal._bring_back
    monkeypatch.setattr(removal, "_bring_back", moved)
    assert removal.restore(project, run).id == run
    waiting.join()
    assert told == [f"there is no removed run {run!r}"]


def test_labels_may_change_while_a_run_begins_or_is_exported(generated: Any, tmp_path: Path) -> None:
    project = Opened.open({"home": generated.home})
    run = esp_run(project)
    folder = project.folder_of(run)
    (folder / ".labels.json.abc.tmp").touch()  # of somebody who writes it just now
    generated(f"runs rm {run} --json")
    generated(f"runs restore {run}")
    with locks.hold(folder, shared=True):
        generated(f"runs export {run} -o {tmp_path}/one.tar")
        labels.change(project.store, run, labels.noted("now"))
    assert (folder / ".labels.json.abc.tmp").exists()
    generated(f"runs note {run} later")
    generated(f"runs export {run} -o {tmp_path}/two.tar")
    assert (tmp_path / "one.tar").read_bytes() != (tmp_path / "two.tar").read_bytes()


def test_a_trial_has_its_run_again_when_that_is_restored(generated: Any) -> None:
    run = esp_run(Opened.open({"home": generated.home}))
    folder = generated.home / "runs" / run
    asked = json.loads((folder / "request.json").read_text())
    asked["request"] |= {"study": "beta", "trial": 7}
    (folder / "request.json").write_text(json.dumps(asked))
    (folder / "held_out.json").write_text("{}")
    with closing(sqlite3.connect(generated.home / "espctl.db")) as raw:
        raw.execute("INSERT INTO studies VALUES (1, 'beta', 'digits', 'esp', 1, '{}', 'x', '2026-01-01 00:00:00')")
        raw.execute("INSERT INTO trials VALUES (1, 1, 7, ?, 'finished', 0.5)", [run])
        raw.commit()
        generated(f"runs rm {run} --force")
        assert raw.execute("SELECT run_id FROM trials").fetchall() == [(None,)]
        generated(f"runs restore {run}")
        assert raw.execute("SELECT run_id FROM trials").fetchall() == [(run,)]
