"""Tables from nothing: plans within a budget, what a stop leaves, one failing cell, and verdicts."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from esp.errors import InputError, UnknownNameError
from espctl.services.project import Project as Opened
from espctl.services.reproduction import plan as plans
from espctl.services.reproduction.plan import (
    Asked,
    Cell,
    ExpertWork,
    Plan,
    Scoring,
    Work,
    cells,
    parse_budget,
    rounded,
    spread,
)
from espctl.services.reproduction.reproduced import Row, verdict

NETWORK = "convnet3,width=4"
ASKED = Asked("table1", "digits", 1, ("dm", "esp"), 60.0, seeds=2, network=NETWORK)
COMMAND = (
    f"reproduce table1 --dataset digits --ipc 1 --method dm --method esp --budget 60s --seeds 2 --network {NETWORK} "
    "--device cpu --threads 1 --jobs 1"
)


def work(label: str, options: dict[str, str], steps: int, experts: int | None = None, **changes: Any) -> Work:
    scorings = (Scoring("convnet3", NETWORK, "dsa@3", 2, 1.0),)
    made = Work(
        "digits", 1, label, label, "quick", options, steps, NETWORK, "normalised", experts, 2 if experts == 0 else 0,
        1.0, scorings, " ".join(f"{name}={value}" for name, value in options.items()),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture
def plan(project: Any) -> Plan:
    """Two methods and random selection in seconds; kept, so that the command goes by it. The experts are there."""
    esp = {"steps": "4", "segment": "2", "start_max": "2", "real_batch": "8"}
    works = (work("random", {}, 0), work("dm", {"steps": "3", "real_batch": "8"}, 3), work("esp", esp, 4, 0))
    experts = ExpertWork("digits", NETWORK, "normalised", 2, 4, 256, 1.0)
    made = Plan(ASKED, "cut", (experts,), works)
    keep(project, made)
    return made


def keep(project: Any, made: Plan) -> None:
    opened = Opened.open({"home": project.home})
    plans.keep(opened, made)
    assert plans.kept(opened, made.asked) == made


def rows(done: Any) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in done.json["rows"]}


def test_a_plan_is_carried_out_and_the_same_again_does_nothing(project: Any, plan: Plan) -> None:
    found = rows(project(COMMAND, "--json"))
    assert list(found) == ["random", "dm", "esp"]
    assert {row["n"] for row in found.values()} == {2}
    assert found["random"]["verdict"] == "-"
    assert found["dm"]["verdict"] in ("better than random", "not better than random")
    assert found["esp"]["options"] == "quick real_batch=8 segment=2 start_max=2 steps=4"
    assert (found["dm"]["published"], found["dm"]["protocol"], found["dm"]["network"]) == (None, "dsa@3", NETWORK)
    times = {path: path.stat().st_mtime_ns for path in (project.home / "runs").glob("*/**/*.json")}
    done = project(COMMAND)
    assert "goes by the plan in" in done.err
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(project.runs()) == len({path.parts[-2] for path in times if path.name == "outcome.json"})
    assert "Scored with convnet3,width=4 by dsa@3, 2 networks." in done.out
    assert "esp" in project("report table1 --dataset digits").out


def test_the_dry_run_says_what_is_missing_and_makes_nothing(project: Any, plan: Plan) -> None:
    before = project.runs()
    done = project(COMMAND, "--dry-run", "--json").json
    assert (done["missing"]["experts"], done["missing"]["works"]) == (["finished"], ["missing"] * 3)
    assert done["missing"]["seconds"] == pytest.approx(plan.seconds - 1.0), "the experts are there"
    assert project.runs() == before
    project(COMMAND)
    [dm] = project.runs("dm")
    next(dm.glob("evaluations/*.s1.json")).unlink()
    left = project(COMMAND, "--dry-run", "--json").json["missing"]
    assert (left["works"], left["seconds"]) == (["finished", "not scored", "finished"], plan.works[1].whole)
    assert "not scored" in project(COMMAND, "--dry-run").out


def test_a_cell_that_fails_leaves_the_others_alone(project: Any, plan: Plan) -> None:
    broken = work("dm", {"steps": "3", "real_batch": "8", "lr_pixels": "1e300"}, 3)
    refused = work("esp", {"segment": "50"}, 4, 0)
    keep(project, dataclasses.replace(plan, works=(plan.works[0], broken, refused)))
    done = project(COMMAND, code=1)
    assert "dm: step" in done.out
    assert "diverged" in done.out
    assert "esp: " in done.out
    assert "segments of 50 were asked" in done.out
    assert "  shorten the segment" in done.out
    found = rows(project(COMMAND, "--json", code=1))
    assert (found["random"]["verdict"], found["dm"]["verdict"], found["esp"]["verdict"]) == ("-", "failed", "failed")
    assert project("runs ls state=failed --json").json[0]["method"] == "dm"
    keep(project, plan)
    assert rows(project(COMMAND, "--json"))["dm"]["message"] == ""


def test_a_damaged_plan_says_how_to_make_another(project: Any, plan: Plan) -> None:
    path = plans.location(Opened.open({"home": project.home}), ASKED)
    path.write_text('{"asked": 1}')
    assert "make another with --replan" in project(COMMAND, code=1).err


def test_two_processes_make_the_same_table_as_one(project: Any, plan: Plan, tmp_path: Path) -> None:
    other = project.copy(tmp_path / "other")
    keep(other, dataclasses.replace(plan, asked=dataclasses.replace(ASKED, jobs=2)))
    one = rows(project(COMMAND, "--json"))
    two = rows(other(COMMAND.replace("--jobs 1", "--jobs 2"), "--json"))
    assert {name: row["mean"] for name, row in one.items()} == {name: row["mean"] for name, row in two.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_was_stopped_goes_on(project: Any, plan: Plan, launch: Any, wait_until: Any, number: int) -> None:
    longer = work("dm", {"steps": "300", "real_batch": "8"}, 300)
    keep(project, dataclasses.replace(plan, works=(plan.works[0], longer)))
    process = launch(project, COMMAND)
    wait_until(lambda: any((run / "metrics.jsonl").exists() for run in project.runs("dm")), "dm does not start")
    process.kill(number)
    done = process.wait()
    [run] = project.runs("dm")
    assert not (run / "outcome.json").exists()
    if number == signal.SIGINT:
        assert (done.code, done.err.splitlines()[-2]) == (130, "error: interrupted")
        assert "the same command goes on" in done.err
        assert project("runs ls method=dm --json").json[0]["state"] == "interrupted"
    created = json.loads((run / "request.json").read_text())["created"]
    found = rows(project(COMMAND, "--json"))
    assert found["dm"]["n"] == 2
    assert project.runs("dm") == [run]
    assert json.loads((run / "request.json").read_text())["created"] == created


@pytest.mark.slow
def test_a_budget_makes_a_plan_that_fits_it(project: Any) -> None:
    found = project(f"{COMMAND} --dry-run --json").json
    plan = found["plan"]
    assert plan["level"] == "cut"
    assert [work["label"] for work in plan["works"]] == ["random", "dm", "esp"]
    assert 0 < plan["seconds"] < 90
    assert all(work["options"]["steps"] == str(work["steps"]) for work in plan["works"] if work["label"] != "random")
    assert (project.home / "plans").is_dir()
    again = project(f"{COMMAND} --dry-run --json").json
    assert again["plan"] == plan
    assert "the budget" in project(COMMAND.replace("60s", "1s"), code=1).err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("table9", "unknown table 'table9'"),
        ("table1 --method dmm", "unknown method 'dmm'"),
        ("table1 --dataset digit", "unknown data set 'digit'"),
        ("table1 --dataset cifar10 --ipc 7", "table1 has no such cell"),
        ("table1 --dataset digits --budget soon", "'soon' is no length of time"),
        ("table1 --dataset digits --preset fast", "unknown preset 'fast'"),
        ("table1 --dataset cifar10 --ipc 1 --method dm", "cifar10"),
    ],
)
def test_what_cannot_be_planned_says_why(project: Any, words: str, sentence: str) -> None:
    done = project(f"reproduce {words}", code=1)
    assert sentence in done.err
    assert "hint: " in done.err


def test_lengths_of_time() -> None:
    assert [parse_budget(text) for text in ("90s", "20m", "1h30m", " 2D ", "0.5h")] == [90, 1200, 5400, 172800, 1800]
    for text in ("", "20", "m", "-5m", "0s", "1h,", "5 m 3", "9999999d"):
        with pytest.raises(InputError):
            parse_budget(text)


def test_rounding_keeps_two_digits_and_never_adds() -> None:
    assert [rounded(value) for value in (0.3, 7.9, 43.2, 256, 1999, 20_500)] == [1, 7, 43, 250, 1900, 20_000]
    assert spread([3, 1, 1, 1], 2) == 3
    assert spread([3, 1, 1, 1], 1) == 6


def test_the_cells_of_the_tables() -> None:
    digits = cells(Asked("table1", "digits"))
    assert [cell.method for cell in digits] == [
        "random", "herding", "dc", "dsa", "dm", "kip", "cafe", "mtt", "idc", "kfs", "esp",
    ]  # fmt: skip
    assert {(cell.ipc, cell.network) for cell in digits} == {(1, "convnet3")}
    cifar = cells(Asked("table1", "cifar10", 10, ("cafe", "esp")))
    assert cifar == [Cell("cifar10", 10, "cafe", "convnet3"), Cell("cifar10", 10, "esp", "convnet3")]
    assert all(plans.published_of(Asked("table1"), cell) for cell in cifar)
    crossed = cells(Asked("table2", "svhn", 1, ("esp",)))
    assert {cell.network for cell in crossed} == {"convnet3", "densenet121", "resnet10"}
    losses = cells(Asked("table4", "digits"))
    assert {cell.method for cell in losses} == {"random", *plans.ABLATED}
    assert {cell.method for cell in cells(Asked("table4", "cifar10", 1))} == set(plans.ABLATED)
    with pytest.raises(UnknownNameError):
        cells(Asked("table1", methods=("nothing",)))


def row(mean: float, sd: float, published: float | None = None, published_sd: float | None = None) -> Row:
    return Row(
        "digits", 1, "dm", "", "pixels", NETWORK, "dsa", mean, sd, 5, published, published_sd, None, True, "", 1.0, "r"
    )


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (row(50.0, 3.0, 45.1, 4.0), "within 1 sd"),  # the deviation of the difference is 5
        (row(50.0, 3.0, 40.1, 4.0), "within 2 sd"),
        (row(50.0, 3.0, 39.9, 4.0), "off"),
        (row(50.0, 3.0, 53.0, None), "within 1 sd"),
        (row(45.1, 3.0), "better than random"),
        (row(44.9, 3.0), "not better than random"),
    ],
)
def test_verdicts_count_standard_deviations_of_the_difference(ours: Row, said: str) -> None:
    chance = dataclasses.replace(row(40.0, 4.0), method="random")
    assert verdict(ours, chance) == said
    assert verdict(chance, chance) == "-"
    if ours.published is None:
        assert verdict(ours, None) == "no random to compare with"
