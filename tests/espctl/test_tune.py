"""`espctl tune`: trials are runs, scored on held-out training images alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from esp.data.store import load
from espctl.cli import tune
from espctl.errors import UsageError

CUT = "--set steps=4 --set real_batch=8 --epochs 2"
TUNE = f"tune -d digits --ipc 1 -m dm --trials 4 {CUT}"


@pytest.fixture(scope="module")
def tuned(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project with a study of four trials. Tests must not change it."""
    project = finished.copy(tmp_path_factory.mktemp("tuned") / "project")
    project(TUNE)
    return project


def trial_runs(project: Any) -> list[Path]:
    return [run for run in project.runs("dm") if "trial" in json.loads((run / "request.json").read_text())["request"]]


def test_every_trial_is_a_run_scored_on_what_it_never_saw(tuned: Any) -> None:
    shown = tuned("tune show dm-digits-1", "--json").json
    assert [point["number"] for point in shown["trials"]] == [0, 1, 2, 3]
    assert shown["states"] == {"complete": 4}
    for point in shown["trials"]:
        run = tuned.home / "runs" / point["run"]
        request = json.loads((run / "request.json").read_text())["request"]
        assert (request["study"], request["trial"], request["held_out"]) == ("dm-digits-1", point["number"], 0.1)
        assert request["method_options"]["lr_pixels"] == float(point["options"]["lr_pixels"])
        score = json.loads((run / "held_out.json").read_text())
        assert (score["state"], score["value"], score["scores"]) == ("complete", point["value"], [point["value"]])
        assert json.loads((run / "outcome.json").read_text())["state"] == "finished"
        assert not (run / "evaluations").exists(), "a held-out score is no test score"
    data = load("digits", tuned.home / "data").held_out(0.1)
    wrong = {round(point["value"] * len(data.test_images), 6) % 1 for point in shown["trials"]}
    assert wrong == {0.0}, "the scores are not fractions of the held-out images"


def test_the_first_trial_is_the_default_and_the_best_is_not_below_it(tuned: Any) -> None:
    shown = tuned("tune best dm-digits-1", "--json").json
    assert shown["default"]["options"] == {"lr_pixels": "1.0"}
    assert shown["best"]["value"] >= shown["default"]["value"]
    assert "espctl condense --from-study dm-digits-1" in tuned("tune best dm-digits-1").out


def test_scores_of_trials_are_in_no_table(tuned: Any) -> None:
    done = tuned("report table1 -d digits", code=1)
    assert "nothing has been scored on digits" in done.err
    with closing(sqlite3.connect(tuned.home / "espctl.db")) as database:
        assert database.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)
        assert {row[0] for row in database.execute("SELECT preset FROM runs WHERE method = 'dm'")} == {"trial"}


def test_a_lost_database_is_made_again_from_the_folders(tuned: Any, tmp_path: Path) -> None:
    project = tuned.copy(tmp_path / "project")
    rows = (
        "SELECT s.name, s.dataset, s.method, s.ipc, t.number, t.run_id, t.state, t.value FROM trials t JOIN studies s"
    )

    def held() -> list[Any]:
        with closing(sqlite3.connect(project.home / "espctl.db")) as database:
            return database.execute(f"{rows} ON s.id = t.study_id ORDER BY t.number").fetchall()

    before = held()
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    project("db upgrade")
    assert held() == before
    assert len(before) == 4
    assert all(row[5] for row in before)


def test_the_same_command_finds_nothing_left_to_do(tuned: Any) -> None:
    before = (tuned.home / "studies" / "dm-digits-1" / "optuna.db").read_bytes()
    done = tuned(TUNE)
    assert "trial" not in done.err
    assert "4 complete" in done.out
    assert (tuned.home / "studies" / "dm-digits-1" / "optuna.db").read_bytes() == before


def test_more_trials_can_be_asked_of_a_study_by_its_name_alone(tuned: Any, tmp_path: Path) -> None:
    project = tuned.copy(tmp_path / "project")
    assert project("tune --study dm-digits-1 --trials 5", "--json").json["states"] == {"complete": 5}
    assert len(trial_runs(project)) == 5


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (f"{TUNE} --epochs 3", "epochs is 2, not 3"),
        (f"{TUNE} --space momentum=float(0,1)", "momentum is not there, not float(0,1)"),
        (f"{TUNE} --set momentum=0.1", "momentum is not there, not 0.1"),
        (f"{TUNE} --held-out 0.2", "held_out is 0.1, not 0.2"),
        (f"tune --study dm-digits-1 -d digits --ipc 2 -m dm {CUT}", "ipc is 1, not 2"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(tuned: Any, words: str, difference: str) -> None:
    done = tuned(words, code=1)
    assert done.err.startswith(f"error: the study dm-digits-1 has other settings: {difference}\nhint: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("tune", 2, "tune needs a data set and a number of images per class"),
        ("tune -d digits", 2, "tune needs a data set"),
        ("tune nothing", 2, "unknown command 'nothing'"),
        ("tune --study nothing", 1, "there is no study 'nothing'"),
        ("tune show nothing", 1, "there is no study 'nothing'"),
        ("condense --from-study nothing", 1, "there is no study 'nothing'"),
        ("tune -d digits --ipc 1 -m dm --study a/b", 1, "'a/b' cannot be the name of a study"),
        ("tune -d digits --ipc 1 -m dm --timeout 2x", 2, "--timeout '2x' is no time"),
        ("tune -d digits --ipc 1 -m dm --held-out 0 --study x", 1, "held-out 0 leaves none"),
        ("tune -d digits --ipc 1 -m dm --pruner x --study x", 1, "unknown pruner 'x'"),
        ("tune -d digits --ipc 1 -m dm --protocol x --study x", 1, "unknown protocol 'x'"),
        ("tune -d digits --ipc 1 -m random --study x", 1, "method random has nothing to tune"),
        ("tune -d digits --ipc 1 -m dm --set lr=1 --study x", 1, "unknown option of method dm 'lr'"),
        ("condense --from-study dm-digits-1 -m esp", 2, "the study dm-digits-1 is of method dm, not esp"),
    ],
)
def test_bad_input(tuned: Any, words: str, code: int, message: str) -> None:
    done = tuned(words, code=code)
    assert message in done.err.splitlines()[0]
    assert "\nhint: " in done.err
    assert not (tuned.home / "studies" / "x").exists(), "a study was made of a bad request"


def test_a_malformed_space_points_at_the_place(tuned: Any) -> None:
    done = tuned("tune -d digits --ipc 1 -m dm --study x --space momentum=float(0;1)", code=1)
    _, text, pointer, _ = done.err.splitlines()
    assert text[pointer.index("^")] == ";"


def test_experts_of_the_held_out_images_are_not_used_unless_asked(tuned: Any, tmp_path: Path) -> None:
    project = tuned.copy(tmp_path / "project")
    options = "--set steps=2 --set real_batch=8 --set segment=2 --set start_max=2 --epochs 1 --pruner none"
    words = f"tune -d digits --ipc 1 -m esp --trials 1 {options}"
    done = project(words, code=1)
    assert "there are no experts of convnet3,width=4 on digits (held-out 0.1)" in done.err
    assert "espctl experts build --dataset digits --network convnet3,width=4 --held-out 0.1" in done.err
    [store] = [path.name for path in (project.home / "experts").iterdir()]
    assert project(f"{words} --study a --experts {store}", "--json").json["states"] == {"complete": 1}
    project("experts build --dataset digits --network convnet3,width=4 --held-out 0.1 --count 1")
    assert project(f"{words} --study b", "--json").json["states"] == {"complete": 1}
    splits = {}
    for run in project.runs("esp"):
        request = json.loads((run / "request.json").read_text())["request"]
        if "study" in request:
            splits[request["study"]] = request.get("experts_split")
    assert splits == {"a": "official", "b": None}


def test_condense_uses_the_best_options_on_the_whole_training_set(tuned: Any, tmp_path: Path) -> None:
    project = tuned.copy(tmp_path / "project")
    best = project("tune best dm-digits-1", "--json").json["best"]
    done = project("condense --from-study dm-digits-1 --set steps=2", "--json")
    described = json.loads((project.home / "runs" / done.json["id"] / "request.json").read_text())
    request = described["request"]
    assert request["method_options"]["lr_pixels"] == float(best["options"]["lr_pixels"])
    assert (request["method_options"]["steps"], request["method_options"]["real_batch"]) == (2, 8)
    assert (request["dataset"], request["ipc"], request["network"]) == ("digits", 1, "convnet3,width=4")
    assert "held_out" not in request
    assert described["provenance"]["from_study"] == f"dm-digits-1 {best['number']}"


def test_other_test_images_change_no_score(tmp_path: Path, finished: Any) -> None:
    """The test set has no part in a study: with other images in it every score is the same."""
    digits = load("digits", finished.home / "data")
    project, scores = finished.copy(tmp_path / "project"), []
    for name, shift in (("one", 0), ("two", 5)):
        path = tmp_path / f"{name}.pt.npz"
        _write(path, digits, shift)
        study = project(
            f"tune -d tensors:{path} --ipc 1 -m dm --trials 2 --pruner none --study {name} {CUT}", "--json"
        ).json
        shown = project(f"tune show {study['name']}", "--json").json
        scores.append([point["value"] for point in shown["trials"]])
    assert scores[0] == scores[1]


def _write(path: Path, digits: Any, shift: int) -> None:
    """The training images of digits with labels of the test images moved on."""
    import numpy as np

    arrays = {
        "train_images": digits.train_images,
        "train_labels": digits.train_labels,
        "test_images": 255 - digits.test_images if shift else digits.test_images,
        "test_labels": (digits.test_labels + shift) % 10,
    }
    np.savez(path, **{name: value.numpy() for name, value in arrays.items()})


def test_ls_and_importance(tuned: Any, tmp_path: Path) -> None:
    assert "dm-digits-1" in tuned("tune ls").out
    [listed] = tuned("tune ls", "--json").json
    assert (listed["name"], listed["states"]) == ("dm-digits-1", {"complete": 4})
    (tmp_path / "empty").mkdir()
    empty = type(tuned)(tmp_path / "empty")
    assert empty("tune ls", "--json").json == []
    assert "there are no studies yet" in empty("tune ls").err


def test_the_plots_open(tuned: Any, tmp_path: Path) -> None:
    from PIL import Image

    paths = [Path(path) for path in tuned(f"tune plot dm-digits-1 --output {tmp_path}", "--json").json]
    assert paths[-1].name == "plots.html"
    assert {path.name for path in paths} >= {"history.png", "slice.png", "intermediate.png"}
    for path in paths[:-1]:
        with Image.open(path) as image:
            assert image.size[0] > 300
            assert len(image.convert("L").getcolors() or range(300)) > 10, "an empty picture"
    page = paths[-1].read_text()
    assert page.count("Plotly.newPlot(") >= 3
    assert "<script src=" not in page, "the page needs a network"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_times(text: str, seconds: float) -> None:
    assert tune.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "2x", "-1h", "h", "1m2h", "2 hours"])
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError):
        tune.seconds(text)
