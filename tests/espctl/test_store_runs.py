"""Entering, finding, listing, tagging and removing runs; experts and data sets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esp.errors import ArtifactError, InputError, UnknownNameError
from espctl.errors import RunError
from espctl.store import labels, runs
from espctl.store.engine import Store, open_store
from espctl.store.experts import list_datasets, record_dataset
from espctl.store.records import DatasetRecord, ExpertRecord, RunRecord

BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def document(number: int, method: str = "esp", dataset: str = "digits", ipc: int = 1, **asked: Any) -> dict[str, Any]:
    return {
        "id": f"{method}-{dataset}-{ipc}-{number:08x}",
        "key": f"{number:064x}",
        "created": (BEGIN + timedelta(minutes=number)).isoformat(),
        "kind": "condense",
        "request": {"method": method, "dataset": dataset, "ipc": ipc, "seed": number, "network": "convnet3", **asked},
        "provenance": {"version": "0.1.0", "git_commit": "c" * 40},
    }


def evaluation(seed: int, accuracy: float, network: str = "convnet3") -> dict[str, Any]:
    kept = {"protocol": "dsa", "protocol_hash": "p" * 16, "created": BEGIN.isoformat()}
    return {**kept, "network": network, "seed": seed, "accuracy": accuracy}


def expert(number: int, folder: str = "experts/digits-1", **changes: Any) -> ExpertRecord:
    values: dict[str, Any] = {
        "dataset": "digits", "fingerprint": "f", "network": "convnet3", "recipe_hash": "abc", "number": number,
        "epochs": 50, "parameters": 1000, "dtype": "float32", "path": f"{folder}/expert-{number:04d}.safetensors",
        "sha256": "s", "bytes": 4000, "accuracy": 0.97, "created": BEGIN, "seconds": 1.0,
    }  # fmt: skip
    return ExpertRecord(**{**values, **changes})


def enter(store: Store, request: dict[str, Any]) -> RunRecord:
    return runs.insert_run(store, request, store.home / "runs" / request["id"])


def tag(store: Store, run: str, word: str) -> None:
    (store.home / "runs" / run).mkdir(parents=True, exist_ok=True)
    labels.change(store, run, labels.tagged([word]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with four runs."""
    with open_store(tmp_path / "espctl.db") as opened:
        enter(opened, document(0))
        enter(opened, document(1, "mtt", preset="paper"))
        enter(opened, document(2, "esp", "cifar10", 10))
        enter(opened, document(3, "dm", "cifar10", 50))
        yield opened


def ids(found: list[RunRecord]) -> list[int]:
    return [run.seed for run in found]


def test_a_run_is_entered_as_queued(store: Store) -> None:
    run = enter(store, document(9, "esp", "svhn", 1, fingerprint="f" * 64, parametrisation="multi-formation"))
    assert run == runs.find_run(store, "esp-svhn-1-00000009")
    assert (run.state, run.folder) == ("queued", "runs/esp-svhn-1-00000009")
    assert (run.created, run.parametrisation) == (BEGIN + timedelta(minutes=9), "multi-formation")
    assert (run.version, run.git_commit, run.fingerprint) == ("0.1.0", "c" * 40, "f" * 64)
    assert runs.run_detail(store, run.id).request["request"]["parametrisation"] == "multi-formation"


def test_a_run_outside_home_keeps_its_absolute_folder(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / "elsewhere"
    assert runs.insert_run(store, document(9), elsewhere).folder == elsewhere.as_posix()


def test_an_id_is_entered_once(store: Store) -> None:
    with pytest.raises(RunError, match="exists already"):
        enter(store, document(0))


@pytest.mark.parametrize(("key", "value"), [("ipc", "1"), ("ipc", True), ("seed", 2**63), ("method", None)])
def test_a_malformed_request_is_refused(store: Store, key: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=f"'{key}' must be"):
        enter(store, {**document(9), "request": {**document(9)["request"], key: value}})
    assert len(runs.list_runs(store)) == 4


def test_states_change_only_from_the_expected_ones(store: Store) -> None:
    run = runs.set_state(store, "esp-digits-1-00000000", "running", expected=("queued",), started=BEGIN, device="cpu")
    assert (run.state, run.started, run.device) == ("running", BEGIN, "cpu")
    with pytest.raises(RunError, match="is running") as caught:
        runs.set_state(store, run.id, "running", expected=("queued", "interrupted"))
    assert caught.value.hint == "it must be queued or interrupted"
    failed = runs.set_state(store, run.id, "failed", error="the loss is not finite")
    assert (failed.error, failed.started, failed.device) == ("the loss is not finite", BEGIN, "cpu")
    assert runs.set_state(store, run.id, "running").error is None
    with pytest.raises(UnknownNameError, match="unknown state"):
        runs.set_state(store, run.id, "done")
    with pytest.raises(RunError, match="there is no run"):
        runs.set_state(store, "nobody", "running")


def test_a_run_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    assert runs.find_run(store, "esp-d").seed == 0
    enter(store, {**document(7), "id": "esp-digits-1-00000000-2"})
    assert runs.find_run(store, "esp-digits-1-00000000").seed == 0
    with pytest.raises(RunError, match="more than one run begins with 'esp'") as ambiguous:
        runs.find_run(store, "esp")
    assert "esp-cifar10-10-00000002" in ambiguous.value.hint


@pytest.mark.parametrize("name", ["", "%", "mtt-digits-1-0000001"])
def test_an_unknown_run_is_named(store: Store, name: str) -> None:
    with pytest.raises(RunError, match="there is no run") as caught:
        runs.find_run(store, name)
    close = "did you mean 'mtt-digits-1-00000001'?"
    assert caught.value.hint == (close if name.startswith("mtt") else "espctl runs ls lists the runs")


@pytest.mark.parametrize(
    ("filters", "where", "expected"),
    [
        ({}, [], [3, 2, 1, 0]),
        ({"method": "esp"}, [], [2, 0]),
        ({"method": ["dm", "mtt"], "dataset": "cifar10"}, [], [3]),
        ({"method": []}, [], []),
        ({"ipc": "10"}, [], [2]),
        ({"preset": None}, [], [3, 2, 0]),
        ({"preset": [None, "paper"], "ipc": [1]}, [], [1, 0]),
        ({"tag": "good"}, [], [3, 1]),
        ({"tag": ["good", "bad"], "dataset": "digits"}, [], [1, 0]),
        ({}, [("ipc", ">=", 10), ("ipc", "<", "50")], [2]),
        ({}, [("method", "!=", "esp")], [3, 1]),
        ({}, [("created", ">", "2026-01-31T13:01:00+01:00")], [3, 2]),
        ({"created": BEGIN}, [], [0]),
    ],
)
def test_filters(store: Store, filters: dict[str, object], where: list[Any], expected: list[int]) -> None:
    tag(store, "mtt-digits-1-00000001", "good")
    tag(store, "dm-cifar10-50-00000003", "good")
    tag(store, "esp-digits-1-00000000", "bad")
    assert ids(runs.list_runs(store, filters, where)) == expected


def test_sorting_and_paging(store: Store) -> None:
    assert ids(runs.list_runs(store, sort="method")) == [3, 2, 0, 1]
    assert ids(runs.list_runs(store, sort="-ipc", limit=2)) == [3, 2]
    assert ids(runs.list_runs(store, sort="created", limit=2, offset=1)) == [1, 2]


def test_unknown_columns_and_values(store: Store) -> None:
    for use in ({"filters": {"metod": "esp"}}, {"where": [("metod", "=", "esp")]}, {"sort": "-metod"}):
        with pytest.raises(UnknownNameError, match="unknown column 'metod'") as caught:
            runs.list_runs(store, **use)
        assert caught.value.hint == "did you mean 'method'?"
    with pytest.raises(UnknownNameError, match="unknown comparison '=='"):
        runs.list_runs(store, where=[("ipc", "==", 1)])
    with pytest.raises(InputError, match="ipc cannot be 'ten'"):
        runs.list_runs(store, {"ipc": "ten"})
    with pytest.raises(InputError, match="created cannot be 'yesterday'"):
        runs.list_runs(store, where=[("created", ">", "yesterday")])
    with pytest.raises(UnknownNameError, match="unknown column 'request'"):
        runs.list_runs(store, {"request": "{}"})


def test_runs_of_one_request(store: Store) -> None:
    enter(store, {**document(5), "key": f"{0:064x}"})
    assert ids(runs.runs_with_key(store, f"{0:064x}")) == [5, 0]
    assert runs.runs_with_key(store, "other") == []


def test_evaluations_are_recorded_once(store: Store) -> None:
    run = "esp-digits-1-00000000"
    for seed in (0, 1):
        runs.record_evaluation(store, run, evaluation(seed, 0.5))
    runs.record_evaluation(store, run, evaluation(1, 0.75))
    runs.record_evaluation(store, "dm-cifar10-50-00000003", evaluation(0, 0.25, "resnet18"))
    assert [found.accuracy for found in runs.run_detail(store, run).evaluations] == [0.5, 0.75]
    found = runs.evaluations_of(store, [run, "mtt-digits-1-00000001", "dm-cifar10-50-00000003"])
    assert {name: [e.accuracy for e in scores] for name, scores in found.items()} == {
        run: [0.5, 0.75], "dm-cifar10-50-00000003": [0.25],
    }  # fmt: skip
    joined = runs.list_evaluations(store, {"dataset": "cifar10"}, protocol="dsa")
    assert [(run.method, score.network) for run, score in joined] == [("dm", "resnet18")]
    assert runs.list_evaluations(store, protocol="other") == []
    with pytest.raises(RunError, match="there is no run 'nobody'"):
        runs.record_evaluation(store, "nobody", evaluation(0, 0.5))


def test_requests_of_runs(store: Store) -> None:
    found = runs.requests_of(store, ["esp-digits-1-00000000", "dm-cifar10-50-00000003", "nobody"])
    assert {name: asked["method"] for name, asked in found.items()} == {
        "esp-digits-1-00000000": "esp", "dm-cifar10-50-00000003": "dm",
    }  # fmt: skip


def test_a_run_goes_with_all_that_hangs_on_it(store: Store) -> None:
    run = "esp-digits-1-00000000"
    runs.record_evaluation(store, run, evaluation(0, 0.5))
    tag(store, run, "a")
    runs.delete_run(store, run)
    assert ids(runs.list_runs(store)) == [3, 2, 1]
    assert (runs.list_tags(store), runs.list_evaluations(store)) == ([], [])
    with pytest.raises(RunError, match="there is no run"):
        runs.delete_run(store, run)


def test_experts(store: Store) -> None:
    for record in (expert(1), expert(0), expert(0, "experts/digits-10"), expert(1, accuracy=0.99)):
        runs.record_expert(store, record)
    chosen = {"fingerprint": "f", "network": "convnet3"}
    found = runs.list_experts(store, chosen, [("accuracy", ">", 0.98)])
    assert found == [expert(1, accuracy=0.99)]
    assert [e.number for e in runs.list_experts(store, chosen)] == [0, 0, 1]
    assert runs.delete_experts(store, "experts/digits-1/") == 2
    assert runs.list_experts(store) == [expert(0, "experts/digits-10")]


def test_data_sets(store: Store) -> None:
    first = DatasetRecord("digits", "f", 1, 16, 16, 10, 1437, 360, "data/a", BEGIN)
    moved = DatasetRecord("digits", "f", 1, 16, 16, 10, 1437, 360, "data/b", BEGIN)
    changed = DatasetRecord("digits", "g", 1, 16, 16, 10, 1437, 360, "data/c", BEGIN + timedelta(days=1))
    for record in (first, moved, changed):
        record_dataset(store, record)
    assert list_datasets(store) == [changed, moved]
