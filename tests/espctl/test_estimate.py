"""Dry runs: what they say, and that they leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from espctl.services.estimating import estimate

DM = "condense --dataset digits --ipc 1 --method dm --set steps=40 --set real_batch=8"
ESP = "condense -d digits --ipc 1 --method esp --set steps=30 --set real_batch=8 --set segment=2 --set start_max=2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH", 0.2)


def files(home: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in home.rglob("*") if path.is_file()}


def test_a_dry_run_leaves_everything_as_it_was(project: Any) -> None:
    before = files(project.home)
    found = project(f"{DM} --dry-run --json").json
    assert files(project.home) == before
    assert found["run"].startswith("dm-digits-1-")
    assert found["experts"] is None
    assert project.runs("dm") == []


def test_the_parts_of_an_estimate_add_up(project: Any) -> None:
    found = project(f"{DM} --dry-run --json").json
    assert found["steps"] == 40
    assert estimate.LEAST <= found["timed_steps"] <= estimate.MOST
    least = found["start_seconds"] + 40 * found["step_seconds"]
    assert found["seconds"] == pytest.approx(least, rel=0.7, abs=2)
    assert found["compile_seconds"] == 0
    assert found["set_bytes"] == 4 * 10 * 16 * 16
    assert found["disk_bytes"] > 3 * found["set_bytes"]  # the set, and two checkpoints that hold it
    first, *others = found["scoring"]
    assert (first["protocol"], first["measured"], first["epochs"], first["network"]) == (
        "dsa",
        True,
        1001,
        "convnet3,width=4",
    )
    assert first["total"] == pytest.approx(2 * first["seconds"])
    assert {score["protocol"] for score in others} == {"dc", "idc", "kip2nn", "mtt"}
    dc = next(score for score in others if score["protocol"] == "dc")
    assert dc["seconds"] < first["seconds"]  # a third of the epochs


def test_set_and_memory_are_those_of_the_real_run(project: Any) -> None:
    guess = project(f"{DM} --dry-run --json").json
    made = project(f"{DM} --json").json
    assert made["id"] == guess["run"]
    assert guess["peak_memory_bytes"] <= made["peak_memory_bytes"] * 1.02  # one process: its peak only grows
    synthetic = project.runs("dm")[0] / "synthetic.safetensors"
    assert 0 < synthetic.stat().st_size - guess["set_bytes"] < 3_000  # the header
    assert made["seconds"] < 60


def test_missing_experts_are_counted_and_stood_in_for(project: Any) -> None:
    before = files(project.home)
    found = project(f"{ESP} --network convnet3,width=5 --dry-run --json").json
    building = found["experts"]
    assert (building["missing"], building["finished"], building["epochs"]) == (2, 0, 4)
    parameters = 9 * 5 + 5 + 2 * (25 * 9 + 5) + 3 * 10 + 5 * 4 * 10 + 10
    assert building["bytes"] == 2 * 5 * parameters * 4
    assert building["total"] == pytest.approx(2 * building["seconds"])
    assert found["step_seconds"] > 0
    assert files(project.home) == before


def test_experts_that_are_there_are_used(project: Any) -> None:
    assert project(f"{ESP} --dry-run --json").json["experts"] is None


def test_a_selection_has_no_steps(project: Any) -> None:
    done = project("condense -d digits --ipc 1 --method random --dry-run")
    assert "none: a selection" in done.out
    assert project.runs("random") == []


def test_a_build_is_estimated_and_not_begun(project: Any) -> None:
    before = files(project.home)
    words = "experts build -d digits --epochs 7 --count 3 --jobs 2 --dry-run"
    found = project(f"{words} --json").json
    assert (found["missing"], found["epochs"], found["jobs"]) == (3, 7, 2)
    assert found["seconds"] >= 7 * found["epoch_seconds"] > 0
    assert found["total"] == pytest.approx(2 * found["seconds"])  # two rounds of at most two
    assert files(project.home) == before
    assert "3 experts of 7 epochs, 0 are there" in project(words).out


def test_a_build_that_is_done_costs_nothing(project: Any) -> None:
    found = project("experts build -d digits --dry-run --json").json
    assert (found["missing"], found["finished"], found["total"]) == (0, 2, 0)


def test_too_little_disk_is_an_error(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda _: 10)
    done = project(f"{DM} --dry-run", code=1)
    assert "the run needs" in done.err
    assert "free some space" in done.err


def test_mistakes_are_found_without_a_run(project: Any) -> None:
    assert "did you mean 'steps'" in project("condense -d digits --ipc 1 --set stebs=1 --dry-run", code=1).err
    run = project.runs("esp")[0].name
    assert "--dry-run is about a new run" in project(f"condense --resume {run} --dry-run", code=2).err


def test_what_people_read(project: Any) -> None:
    done = project(f"{ESP} --network convnet3,width=5 --dry-run")
    for text in ("(not entered)", "peak memory", "Experts are missing", "dsa *", "one network", "cpu, 1 threads"):
        assert text in done.out
    assert "nothing is kept" in done.err
    assert "nothing" not in project(f"{DM} --dry-run -q").err


def test_a_protocol_is_measured_whatever_its_length(project: Any) -> None:
    (project.home / "espctl.toml").write_text(
        (project.home / "espctl.toml").read_text().replace("seeds = 2", 'seeds = 2\nprotocol = "mtt"')
    )
    first = project(f"{DM} --dry-run --json").json["scoring"][0]
    assert (first["protocol"], first["measured"]) == ("mtt", True)
