"""`condense --profile`: what it says, and that it leaves nothing behind but a trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from esp import parts
from espctl.services import profile

ESP = "condense -d digits --ipc 1 --method esp --set steps=5 --set real_batch=8 --set segment=2 --set start_max=2"
DM = "condense -d digits --ipc 1 --method dm --set steps=4 --set real_batch=8"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "STEPS", 3)
    monkeypatch.setattr(profile, "ENOUGH", 0.5)


def files(home: Path) -> dict[str, float]:
    return {str(path.relative_to(home)): path.stat().st_mtime for path in home.rglob("*") if path.is_file()}


TWO_PASSES = {"network: parameter gradient", "network: mixed derivative"}
ONE_PASS = {"network: gradient and its pullback"}


@pytest.mark.parametrize(("chunk", "passes"), [(400, TWO_PASSES), (800, ONE_PASS)])
def test_a_profile_adds_up_and_leaves_a_trace_alone(project: Any, chunk: int, passes: set[str]) -> None:
    before = files(project.home)
    found = project(f"{ESP} --profile --chunk {chunk} --json").json
    trace = Path(found["trace"])
    after = files(project.home)
    assert after.pop(str(trace.relative_to(project.home)))
    assert after == before
    assert found["stand_ins"] is False
    assert sum(part["seconds"] for part in found["parts"]) == pytest.approx(found["profiled_seconds"], rel=0.05)
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1, rel=0.05)
    named = {part["name"] for part in found["parts"]}
    assert named >= {"decoding", "augmentation", "projection", "optimiser", profile.OTHER, *passes}
    assert named <= {*parts.NAMES, profile.OTHER}
    assert not named & ((TWO_PASSES | ONE_PASS) - passes)
    gradient = next(part for part in found["parts"] if "gradient" in part["name"])
    assert gradient["calls"] == 1
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"esp.projection", profile.STEP} <= events


def test_the_floor_counts_what_a_step_computes(project: Any) -> None:
    floor = project(f"{DM} --profile --json").json["floor"]
    # Features of 10 synthetic images, again with a derivative that costs as much, and of 80 real ones: 11 passes of
    # the 10 forward. So narrow a network adds a few for what augmentation multiplies.
    assert 10.5 < floor["passes"] < 15
    assert floor["operations"] > 0
    assert floor["times"] > 1


def test_it_is_shown_as_tables(project: Any) -> None:
    shown = project(f"{DM} --profile")
    for text in ("forward passes of the synthetic set", "network: features", "aten::", "Operators that take longest"):
        assert text in shown.out
    assert "profiler" not in shown.err


def test_without_experts_others_stand_in(project: Any) -> None:
    for path in (project.home / "experts").rglob("*.safetensors"):
        path.unlink()
    assert project(f"{ESP} --profile --json").json["stand_ins"] is True
    assert not list((project.home / "experts").rglob("*.safetensors"))


@pytest.mark.parametrize("other", ["--dry-run", "--again", "--resume x"])
def test_it_goes_with_no_other_way_to_run(project: Any, other: str) -> None:
    words = f"{DM} --profile {other}"
    assert f"--profile and {other.split()[0]} exclude each other" in project(words, code=2).err


def test_a_selection_has_no_steps(project: Any) -> None:
    assert "without any steps" in project("condense -d digits --ipc 1 -m random --profile", code=1).err
