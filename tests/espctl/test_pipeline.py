"""From experts to a table, on real images, through the program's own commands."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from esp import condensed

DM = "condense --dataset digits --ipc 1 --method dm --set steps=4 --set real_batch=8"
PIXELS = (
    "condense --dataset digits --ipc 1 --method esp --parametrisation pixels "
    "--set steps=4 --set real_batch=8 --set segment=2 --set start_max=2"
)
RUN_KEYS = {
    "id", "key", "kind", "method", "dataset", "fingerprint", "ipc", "network", "parametrisation", "seed", "preset",
    "state", "created", "started", "finished", "seconds", "peak_memory_bytes", "stored_numbers", "budget_numbers",
    "device", "git_commit", "version", "error", "folder", "name", "note", "tags", "options", "scores",
}  # fmt: skip
ROW_KEYS = {
    "dataset", "method", "options", "stored", "ipc", "preset", "network", "protocol", "mean", "sd", "n", "best",
    "published", "published_sd", "difference", "comparable", "reasons", "certain", "runs", "evaluations", "best_known",
    "cost", "measures",
}  # fmt: skip
SCORE_KEYS = {"run", "method", "protocol", "network", "mean", "sd", "n", "best_mean", "best_sd"}
EXPERT_KEYS = {
    "name", "dataset", "network", "number", "epochs", "parameters", "dtype", "accuracy", "loss", "bytes", "healthy",
    "complaints", "path", "split", "space",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five runs, four of them scored: random selection and herding come along. Tests of this module only read it."""
    project = finished.copy(tmp_path_factory.mktemp("whole") / "project")
    project(PIXELS)
    project(DM)
    project("condense --dataset digits --ipc 2 --method random --seed 3")
    for run in (project.runs("esp")[0], project.runs("dm")[0]):
        project(f"evaluate {run.name} --epochs 3")
    return project


def rows(project: Any, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(project.home / "espctl.db")) as database:
        return database.execute(statement).fetchall()


def test_experts_are_listed_drawn_and_verified(whole: Any) -> None:
    experts = whole("experts ls", "--json").json
    assert [set(expert) for expert in experts] == [EXPERT_KEYS] * 2
    assert [(e["number"], e["epochs"], e["dataset"], e["network"]) for e in experts] == [
        (0, 4, "digits", "convnet3,width=4"),
        (1, 4, "digits", "convnet3,width=4"),
    ]
    assert experts[0]["parameters"] == 530  # 48 + 156 + 156 + 170
    drawn = whole("experts show 1")
    assert "┤" in drawn.out
    assert f"{experts[1]['accuracy']:.2%}" in drawn.out
    found = whole("experts show 1", "--json").json
    assert set(found) == {"expert", "curve"}
    assert [point["epoch"] for point in found["curve"]] == [0, 1, 2, 3, 4]
    assert whole("experts verify").out == "2 experts, 0 damaged\n"
    assert [item["problem"] for item in whole("experts verify", "--json").json] == [None, None]
    assert whole("experts ls --network convnet3", "--json").json == []
    assert rows(whole, "SELECT number, network FROM experts ORDER BY number") == [
        (0, "convnet3,width=4"),
        (1, "convnet3,width=4"),
    ]


def test_each_run_leaves_a_whole_folder(whole: Any) -> None:
    for run in whole.runs():
        names = {path.name for path in run.iterdir()}
        assert {"request.json", "synthetic.safetensors", "outcome.json"} <= names
        assert "checkpoint.safetensors" not in names
        outcome = json.loads((run / "outcome.json").read_text())
        assert outcome["stored_numbers"] <= outcome["budget_numbers"]
        provenance = json.loads((run / "request.json").read_text())["provenance"]
        assert {"version", "torch", "python", "platform", "git_commit", "device"} <= set(provenance)
        images = condensed.load(run / "synthetic.safetensors").images()
        assert images.isfinite().all()
        assert images.shape[1:] == (1, 16, 16)


def test_a_score_is_one_row_for_each_trained_network_and_selections_come_along(whole: Any) -> None:
    found = rows(whole, "SELECT run_id, seed, protocol, epochs FROM evaluations ORDER BY run_id, seed")
    scored = {run for run, *_ in found}
    assert [run.partition("-")[0] for run in sorted(scored)] == ["dm", "esp", "herding", "random"]
    assert [rest for _, *rest in found] == [[0, "dsa@3", 3], [1, "dsa@3", 3]] * 4
    again = whole(f"evaluate {whole.runs('dm')[0].name} --epochs 3", "--json")
    assert [set(score) for score in again.json] == [SCORE_KEYS] * 3
    assert [score["method"] for score in again.json] == ["dm", "random", "herding"]
    assert again.err == "", "something was trained again"
    assert rows(whole, "SELECT count(*) FROM evaluations") == [(8,)]


def test_selections_are_made_once_whatever_the_seed(project: Any) -> None:
    for seed in (1, 2):
        project(f"{DM} --seed {seed}")
    (project.home / "experts").rename(project.home / "aside")
    first, second = (run.name for run in project.runs("dm"))
    project(f"evaluate {first} --epochs 2")
    assert len(project.runs("random")) == 1
    assert project.runs("herding") == [], "there were no experts to look with"
    (project.home / "aside").rename(project.home / "experts")
    project(f"evaluate {second} --epochs 2")
    project(f"evaluate {first} --epochs 2")
    assert len(project.runs("random")) == len(project.runs("herding")) == 1


def test_runs_are_filtered_sorted_and_cut(whole: Any) -> None:
    everything = whole("runs ls", "--json").json
    assert [set(run) for run in everything] == [RUN_KEYS] * 6
    assert sorted(run["created"] for run in everything) == [run["created"] for run in everything][::-1]

    def ids(*words: str) -> list[str]:
        return [run["id"] for run in whole("runs ls", *words, "--json").json]

    assert {run.partition("-")[0] for run in ids("method=esp")} == {"esp"}
    assert len(ids("method=esp", "parametrisation=latent")) == 1
    assert ids("ipc>=2") == [run["id"] for run in everything if run["ipc"] == 2]
    assert ids("state!=finished") == []
    assert ids("--sort", "id") == sorted(ids())
    assert ids("--sort", "-id", "--limit", "2") == sorted(ids(), reverse=True)[:2]
    text = whole("runs ls").out
    assert all(run["id"] in text for run in everything)
    assert "(2, dsa@3)" in text


def test_a_run_is_shown_with_everything_known(whole: Any) -> None:
    run = whole.runs("esp")[0].name
    shown = whole("runs show", run).out
    for part in (run, "finished", "proj_norm", "stored numbers", "torch", "dsa@3", "convnet3,width=4"):
        assert part in shown
    found = whole("runs show", run, "--json").json
    assert set(found) == {"detail", "scores", "metrics"}
    assert {"run", "request", "outcome", "evaluations", "artifacts", "tags"} <= set(found["detail"])
    assert {"loss", "dm", "proj"} <= set(found["metrics"])


def test_the_same_request_is_refused_politely_and_repeated_when_asked(project: Any) -> None:
    [run] = project.runs("dm") or [None]
    assert run is None
    project(DM)
    [run] = project.runs("dm")
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    again = project(DM)
    assert f"{run.name} has done exactly this already; --again repeats it" in again.err
    assert run.name in again.out
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert project(DM, "--again", "--json").json["id"] == f"{run.name}-2"
    first, second = (path / "synthetic.safetensors" for path in project.runs("dm"))
    assert condensed.load(first).images().equal(condensed.load(second).images())
    for path in project.runs("dm"):
        project(f"evaluate {path.name} --epochs 2 --no-baseline")
    [row] = project("report table1 --dataset digits", "--json").json
    assert row["n"] == 2, "the same two networks, trained twice, are still two"
    assert row["sd"] > 0


def test_the_table_in_every_format(whole: Any) -> None:
    found = whole("report table1 --dataset digits", "--json").json
    assert [set(row) for row in found] == [ROW_KEYS] * 4
    assert [row["method"] for row in found] == ["random", "herding", "dm", "esp"]
    assert all(0 < row["mean"] < 100 and row["n"] == 2 and row["published"] is None for row in found)
    assert whole("report table1 --dataset digits --format json").json == found
    cell = f"{found[0]['mean']:.1f} ± {found[0]['sd']:.1f}"
    screen = whole("report table1 --dataset digits").out
    assert cell in screen
    assert "protocol: dsa@3" in screen
    markdown = whole("report table1 --dataset digits --format md").out.splitlines()
    assert markdown[0].startswith("| method | stored | preset | accuracy | n | published | diff | best | options |")
    assert markdown[2].startswith(f"| random | pixels | paper | {cell} | 2 |")
    parsed = list(csv.DictReader(io.StringIO(whole("report table1 --dataset digits --format csv").out)))
    assert [row["method"] for row in parsed] == ["random", "herding", "dm", "esp"]
    assert [float(row["mean"]) for row in parsed] == [row["mean"] for row in found]
    latex = whole("report table1 --dataset digits --format latex").out
    assert rf"random & pixels & paper & {cell.replace('±', '$' + chr(92) + 'pm$')} & 2 &" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    assert r"real\_batch=8" in latex


def test_the_images_of_a_run_are_a_picture(whole: Any, tmp_path: Path) -> None:
    for method in ("esp", "random"):
        path = tmp_path / "pictures" / f"{method}.png"
        assert whole(f"report images {whole.runs(method)[-1].name} -o", str(path)).out == f"{path}\n"
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert picture.width >= 16
            assert picture.height >= 10 * 16
            low, high = picture.convert("L").getextrema()
            assert low != high


def test_a_lost_database_is_rebuilt_from_the_folders(whole: Any, tmp_path: Path) -> None:
    project = whole.copy(tmp_path / "project")
    table = project("report table1 --dataset digits", "--json").json
    listed = project("runs ls", "--json").json
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    assert "6 runs added" in project("db upgrade").out
    assert project("report table1 --dataset digits", "--json").json == table
    assert sorted(project("runs ls", "--json").json, key=lambda run: run["id"]) == sorted(
        listed, key=lambda run: run["id"]
    )
    assert "none" in project("db check").out
    for path in project.home.glob("espctl.db*"):
        path.unlink()
    assert project("report table1 --dataset digits", "--json").json == table, "without being asked"


def test_a_project_can_be_moved(whole: Any, tmp_path: Path) -> None:
    moved = whole.copy(tmp_path / "elsewhere")
    assert "has done exactly this already" in moved(DM).err
    assert len(moved("report table1 --dataset digits", "--json").json) == 4


def test_experts_that_unfinished_runs_need_are_not_removed(project: Any) -> None:
    [store] = (project.home / "experts").iterdir()
    [run] = project.runs("esp")
    (run / "outcome.json").rename(run / "aside")
    assert f"the unfinished run {run.name} needs" in project("experts rm", store.name, "--yes", code=1).err
    (run / "aside").rename(run / "outcome.json")
    assert "removed" in project("experts rm", store.name, "--yes").out
    assert not store.exists()
    assert project("experts ls", "--json").json == []
    assert rows(project, "SELECT * FROM experts") == []


def test_the_installed_script_from_an_empty_folder(tmp_path: Path) -> None:
    script = shutil.which("espctl", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the distribution is not installed in this environment, so there is no script")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [script, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "now has schema" in run("db", "upgrade")
    network = "convnet3,width=4"
    run("condense", "-d", "digits", "--ipc", "1", "-m", "random", "-n", network, "--threads", "1")
    [folder] = (tmp_path / "runs").iterdir()
    run("evaluate", folder.name, "-n", network, "--epochs", "2", "--seeds", "1", "--threads", "1")
    [row] = json.loads(run("report", "table1", "-d", "digits", "--json"))
    assert (row["method"], row["n"]) == ("random", 1)
