"""From run folders into the database: once, twice, after crashes, and with nothing left but the folders."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from esp.errors import ArtifactError
from espctl.store import folder as folders
from espctl.store import labels, runs
from espctl.store.engine import Store, open_store
from espctl.store.runs import list_runs, sync

CREATED = "2026-01-31T12:00:00+00:00"
TABLES = ("runs", "metrics", "evaluations", "artifacts", "tags")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def request(home: Path, number: int = 0) -> tuple[Path, dict[str, Any]]:
    """A run folder with its request alone."""
    name = f"esp-digits-1-{number:08x}"
    asked = {"method": "esp", "dataset": "digits", "ipc": 1, "seed": number, "network": "convnet3"}
    document = {"id": name, "key": "k", "created": CREATED, "kind": "condense", "request": asked, "provenance": {}}
    write(home / "runs" / name / "request.json", document)
    return home / "runs" / name, document


def evaluate(folder: Path, seed: int, accuracy: float = 0.5) -> None:
    kept = {"protocol": "dsa", "protocol_hash": "p", "network": "convnet3", "seed": seed, "created": CREATED}
    write(folder / "evaluations" / f"dsa.convnet3.s{seed}.json", {**kept, "accuracy": accuracy, "train_loss": None})


def end(folder: Path, state: str = "finished", **changes: Any) -> None:
    artifact = {"name": "synthetic", "path": "synthetic.safetensors", "sha256": "a" * 64, "bytes": 4096}
    outcome = {"state": state, "started": CREATED, "finished": CREATED, "seconds": 12.5, "artifacts": [artifact]}
    sizes = {"peak_memory_bytes": 2**33, "stored_numbers": 2560, "budget_numbers": 2560, "device": "cpu", "error": None}
    write(folder / "outcome.json", {**outcome, **sizes, **changes})


def finished(home: Path, number: int = 0) -> Path:
    folder, _ = request(home, number)
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0, "lr": 0.5}\n')
    evaluate(folder, 0)
    evaluate(folder, 1, 0.75)
    write(folder / "labels.json", {"name": None, "note": "seen", "tags": ["kept"]})
    end(folder)
    return folder


def content(database: Path) -> dict[str, list[Any]]:
    """Every row, without the numbers that the database itself gives."""
    with closing(sqlite3.connect(database)) as connection:
        names = {table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in TABLES}
        columns = {
            table: ", ".join(name for name in found if (table, name) != ("evaluations", "id"))
            for table, found in names.items()
        }
        return {table: sorted(connection.execute(f"SELECT {columns[table]} FROM {table}"), key=str) for table in TABLES}


def open_at(home: Path) -> Store:
    return open_store(home / "espctl.db")


def test_an_outcome_is_recorded_whole(home: Path) -> None:
    folder, document = request(home)
    with open_at(home) as store:
        runs.insert_run(store, document, folder)
        finished(home)
        run = runs.record_outcome(store, folder)
        assert run == runs.find_run(store, run.id)
        assert (run.state, run.seconds, run.peak_memory_bytes, run.device) == ("finished", 12.5, 2**33, "cpu")
        assert run.finished is not None
        assert run.finished.isoformat() == CREATED
        detail = runs.run_detail(store, run.id)
        assert [score.accuracy for score in detail.evaluations] == [0.5, 0.75]
        assert [(artifact.name, artifact.bytes) for artifact in detail.artifacts] == [("synthetic", 4096)]
        assert detail.outcome == json.loads((folder / "outcome.json").read_text())
        assert detail.tags == ("kept",)
        assert runs.metrics_of(store, run.id) == {"loss": [(0, 2.0), (1, 1.0)], "lr": [(1, 0.5)]}


def test_recording_twice_changes_nothing(home: Path) -> None:
    folder = finished(home)
    with open_at(home) as store:
        runs.record_outcome(store, folder)
        before = content(store.database)
        runs.record_outcome(store, folder)
        assert content(store.database) == before
        assert all(before.values())


def test_a_run_that_the_database_never_heard_of_is_entered(home: Path) -> None:
    folder = finished(home)
    with open_at(home) as store:
        assert runs.list_runs(store) == []
        runs.record_outcome(store, folder)
        assert [run.state for run in runs.list_runs(store)] == ["finished"]


def test_a_run_that_goes_on_after_an_interruption_renews_its_rows(home: Path) -> None:
    folder = finished(home)
    end(folder, "interrupted")
    with open_at(home) as store:
        runs.record_outcome(store, folder)
        runs.set_state(store, folder.name, "running")
        assert runs.sync(store, home / "runs").unchanged == (folder.name,)
        assert runs.find_run(store, folder.name).state == "running"
        (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 0.5}\n')
        end(folder, "failed", error="the loss is not finite", artifacts=[])
        run = runs.record_outcome(store, folder)
        assert (run.state, run.error) == ("failed", "the loss is not finite")
        assert runs.metrics_of(store, run.id) == {"loss": [(5, 0.5)]}
        assert runs.run_detail(store, run.id).artifacts == ()


def test_a_run_without_an_outcome_is_not_recorded(home: Path) -> None:
    folder, _ = request(home)
    with open_at(home) as store:
        with pytest.raises(ArtifactError, match=r"outcome\.json does not exist"):
            runs.record_outcome(store, folder)
        assert runs.list_runs(store) == []


def test_evaluations_of_a_folder_are_recorded_beside_those_that_are_there(home: Path) -> None:
    folder = finished(home)
    with open_at(home) as store:
        runs.record_outcome(store, folder)
        evaluate(folder, 1, 1.0)
        evaluate(folder, 2)
        assert len(runs.record_evaluations(store, folder)) == 3
        assert [score.accuracy for score in runs.run_detail(store, folder.name).evaluations] == [0.5, 1.0, 0.5]


def test_a_lost_database_is_rebuilt_from_the_folders(home: Path) -> None:
    with open_at(home) as store:
        for number in range(3):
            runs.record_outcome(store, finished(home, number))
        labels.change(store, "esp-digits-1-00000001", labels.tagged(["best"]))
        before = content(store.database)
    for path in home.glob("espctl.db*"):
        path.unlink()
    with open_at(home) as store:
        report = runs.sync(store, home / "runs")
        assert [len(part) for part in (report.added, report.updated, report.unchanged)] == [3, 0, 0]
        assert content(store.database) == before
        report = runs.sync(store, home / "runs")
        assert [len(part) for part in (report.added, report.updated, report.unchanged)] == [0, 0, 3]
        assert content(store.database) == before


def test_runs_that_never_ended_are_queued_or_interrupted(home: Path) -> None:
    request(home, 0)
    began, _ = request(home, 1)
    (began / "metrics.jsonl").touch()
    running, document = request(home, 2)
    with open_at(home) as store:
        runs.insert_run(store, document, running)
        runs.set_state(store, running.name, "running")
        (running / "checkpoint.safetensors").touch()
        runs.sync(store, home / "runs")
        assert [run.state for run in runs.list_runs(store, sort="seed")] == ["queued", "interrupted", "running"]


def test_sync_finds_what_a_crash_left_out(home: Path) -> None:
    folder, document = request(home)
    with open_at(home) as store:
        runs.insert_run(store, document, folder)
        finished(home)
        assert runs.sync(store, home / "runs").updated == (folder.name,)
        evaluate(folder, 2)
        assert runs.sync(store, home / "runs").updated == (folder.name,)
        assert len(runs.run_detail(store, folder.name).evaluations) == 3


def test_sync_reports_folders_it_cannot_read_and_runs_without_one(home: Path) -> None:
    good, gone, copied = finished(home, 0), finished(home, 1), home / "runs" / "copy"
    with open_at(home) as store:
        runs.sync(store, home / "runs")
        (home / "runs" / "notes").mkdir()
        write(copied / "request.json", json.loads((good / "request.json").read_text()))
        (finished(home, 2) / "outcome.json").write_text('{"state": ')
        for path in sorted(gone.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        report = runs.sync(store, home / "runs")
        assert (report.unchanged, report.missing) == ((good.name,), (gone.name,))
        (name, first), (_, second) = report.unreadable
        assert (name, "is of run" in first, "is not valid JSON" in second) == ("copy", True, True)
        assert runs.sync(store, home / "nowhere").unchanged == ()


def test_a_project_that_moved_keeps_its_runs(home: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    folder = finished(old)
    with open_at(old) as store:
        runs.record_outcome(store, folder)
    old.rename(new)
    with open_at(new) as store:
        assert runs.sync(store, new / "runs").unchanged == (folder.name,)
        assert (store.home / runs.list_runs(store)[0].folder / "outcome.json").exists()


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("outcome.json", "[]", "must hold a JSON object"),
        ("outcome.json", '{"state": "done"}', "'state' cannot be 'done'"),
        ("outcome.json", '{"state": "finished", "seconds": NaN}', "'seconds' must be a finite number"),
        ("outcome.json", '{"state": "finished", "started": "noon"}', "'started' must be a time"),
        ("outcome.json", '{"state": "finished", "error": "\\ud800"}', "'error' must be text"),
        ("outcome.json", '{"state": "finished", "artifacts": {}}', "'artifacts' must be a list"),
        ("outcome.json", '{"state": "finished", "artifacts": [{"name": "x"}]}', "'path' is missing"),
        ("outcome.json", "[" * 100_000, "is not valid JSON"),
        ("evaluations/dsa.json", '{"protocol": "dsa"}', "'protocol_hash' is missing"),
        ("labels.json", '{"tags": ["a", 1]}', "must be a list of words"),
        ("request.json", "\xff", "is not valid JSON"),
    ],
)
def test_damaged_files_are_named(home: Path, file: str, text: str, complaint: str) -> None:
    folder = finished(home)
    (folder / file).write_text(text, encoding="latin-1")
    with open_at(home) as store, pytest.raises(ArtifactError, match=complaint) as caught:
        runs.record_outcome(store, folder)
    assert str(folder / file) in caught.value.message
    assert caught.value.hint


def test_metrics_are_thinned_evenly(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": step, "loss": step, **({"rare": 1} if step % 1000 == 0 else {})}) for step in range(5000)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = folders.metrics(tmp_path)
    steps = [step for name, step, _ in found if name == "loss"]
    assert (len(steps), steps[0], steps[-1]) == (500, 0, 4999)
    assert {after - before for before, after in pairwise(steps)} == {10, 11}
    assert [step for name, step, _ in found if name == "rare"] == [0, 1000, 2000, 3000, 4000]


def test_metrics_survive_crashes_and_repeated_steps(tmp_path: Path) -> None:
    lines = ['{"step": 0, "loss": 9}', '{"step": 1, "lo{"step": 1, "loss": 8}', '{"step": 1, "loss": 7}']
    lines += ['{"step": 1, "loss": 6, "bad": NaN, "text": "x", "flag": true}', "[1]", '{"loss": 1}', '{"step": 2, "l']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert folders.metrics(tmp_path) == [("loss", 0, 9.0), ("loss", 1, 6.0)]
    assert folders.metrics(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("state", "error"), [("pruned", "after 3 of 9 steps"), ("failed", "pruned: after 3 of 9 steps")]
)
def test_the_run_of_a_pruned_trial_has_not_failed(tmp_path: Path, state: str, error: str) -> None:
    """The second is how it was written when runs could only fail."""
    asked = {"method": "dm", "dataset": "digits", "ipc": 1, "seed": 0, "study": "beta", "trial": 3}
    request = {"id": "a", "key": "k", "created": "2026-01-31T12:00:00Z", "kind": "condense", "request": asked}
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/request.json").write_text(json.dumps(request))
    (tmp_path / "runs/a/outcome.json").write_text(json.dumps({"state": state, "error": error, "artifacts": []}))
    with open_store(tmp_path / "espctl.db") as store:
        sync(store, tmp_path / "runs")
        [run] = list_runs(store, expression="state=pruned")
        assert (run.state, run.error) == ("pruned", "after 3 of 9 steps")


def test_many_folders_are_entered_in_few_transactions(tmp_path: Path) -> None:
    asked = {"method": "dm", "dataset": "digits", "ipc": 1, "seed": 0}
    for number in range(230):
        folder = tmp_path / f"runs/r{number:03d}"
        folder.mkdir(parents=True)
        request = {"id": folder.name, "key": "k", "created": "2026-01-31T12:00:00Z", "kind": "condense"}
        (folder / "request.json").write_text(json.dumps({**request, "request": asked}))
    with open_store(tmp_path / "espctl.db") as store:
        commits: list[object] = []
        event.listen(store.engine, "commit", commits.append)
        assert len(sync(store, tmp_path / "runs").added) == 230
        assert len(commits) == 3
        assert len(sync(store, tmp_path / "runs").unchanged) == 230
        assert len(commits) == 3
