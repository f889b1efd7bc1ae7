"""Metrics for other programs: read back with those programs, where they are installed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from espctl.errors import SettingsError
from espctl.jobs import logs
from espctl.settings import Logging

Seen = list[tuple[int, dict[str, Any]]]


def follow(folder: Path, to: Any, points: list[tuple[int, float]], run: str = "esp-1") -> Seen:
    """Log some losses; returns what the caller of the run saw."""
    seen: Seen = []
    chosen = Logging(to=to, project="mine")
    with logs.following(
        chosen, folder, run, {"method": "esp", "options": {"beta": 1e-5}}, lambda n, v: seen.append((n, v))
    ) as on:
        for step, loss in points:
            on(step, {"loss": loss, "images/s": 2.5, "memory": "9 MB"})
    return seen


def test_off_means_that_nothing_stands_between(tmp_path: Path) -> None:
    def progress(done: int, values: dict[str, Any]) -> None: ...

    with logs.following(Logging(), tmp_path / "logs", "r", {}, progress) as on:
        assert on is progress
    assert not (tmp_path / "logs").exists()


def test_nested_facts_get_dotted_names() -> None:
    facts = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}}, "f": "x"}
    assert logs.flat(facts) == {"a": 1, "b.c": None, "b.d.e": "[1, 2]", "f": "x"}


@pytest.mark.parametrize("to", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_remedy(to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(__import__("sys").modules, to, raising=False)
    with pytest.raises(SettingsError, match=f"logging to {to} needs a package") as caught:
        logs.require(Logging(to=to))
    assert caught.value.hint == f"run: pip install 'esp-condense[{to}]'; or leave out --log"


def test_a_log_that_fails_never_ends_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file where the folder would be")
    seen = follow(tmp_path / "logs", "tensorboard", [(1, 2.0), (2, 1.0)])
    assert [(step, values["loss"]) for step, values in seen] == [(1, 2.0), (2, 1.0)]
    assert all("Error" in values["log"] for _, values in seen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_its_events_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = follow(tmp_path, "tensorboard", [(1, 3.0), (2, 2.0), (3, 1.5)])
    assert seen[0] == (1, {"loss": 3.0, "images/s": 2.5, "memory": "9 MB"})
    follow(tmp_path, "tensorboard", [(2, 2.0), (3, 1.0)])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "esp-1"))
    events.Reload()
    assert {(event.step, event.value) for event in events.Scalars("loss")} == {(1, 3.0), (2, 2.0), (3, 1.0)}
    assert b"options.beta" in events.Tensors("request/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_for_a_run_that_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follow(tmp_path, "mlflow", [(1, 3.0), (2, 2.0)])
    follow(tmp_path, "mlflow", [(3, 1.0)])
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("esp-1", "FINISHED")]
        found = database.execute("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
        assert ("options.beta", "1e-05") in database.execute("SELECT key, value FROM params").fetchall()
        assert database.execute("SELECT name FROM experiments WHERE name = 'mine'").fetchall() == [("mine",)]
    assert found == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_a_run_that_leaves_the_machine_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    follow(tmp_path, "wandb", [(1, 3.0), (2, 2.0)])
    (made,) = tmp_path.glob("wandb/offline-run-*-esp-1/run-esp-1.wandb")
    # Its own process writes the file, some time after the run has said that it is finished.
    wait_until(lambda: b"loss" in made.read_bytes(), "no metrics were written")
