"""`--stack`: networks trained as one program, and the same files, records and refusals as one by one."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esp import artifact
from esp.networks.flat import build as build_network
from espctl.jobs.compute import jobs_of, stack_of
from espctl.settings import Compute

EPOCHS = "--dataset digits --count 3 --epochs"
OWN = """
import torch

class Noisy(torch.nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.head = torch.nn.Linear(size, classes)

    def forward(self, x):
        features = x.flatten(1)
        return features + 0 * torch.randn_like(features), self.head(features)

def noisy(shape, classes):
    return Noisy(shape[0] * shape[1] * shape[2], classes)
"""


def experts_of(project: Any, epochs: int) -> list[Path]:
    return sorted(
        path
        for path in (project.home / "experts").glob("*/expert-*.safetensors")
        if artifact.read_meta(path)[0]["epochs"] == epochs
    )


def require_equal(one: Path, other: Path) -> None:
    found, wanted = artifact.load(one), artifact.load(other)
    torch.testing.assert_close(found.tensors["theta"], wanted.tensors["theta"], rtol=0, atol=1e-4)
    for meta in (found.meta, wanted.meta):
        meta["curve"] = [point["epoch"] for point in meta["curve"]]
    assert found.meta == wanted.meta


def test_stacked_experts_are_those_of_one_by_one(project: Any, tmp_path: Path) -> None:
    alone = project.copy(tmp_path / "alone")
    alone(f"experts build {EPOCHS} 2")
    assert "3 to train" in project(f"experts build {EPOCHS} 2 --stack 2").err
    here, there = experts_of(project, 2), experts_of(alone, 2)
    assert [path.relative_to(project.home) for path in here] == [path.relative_to(alone.home) for path in there]
    for one, other in zip(here, there, strict=True):
        require_equal(one, other)
    facts = [json.loads(path.with_suffix(".json").read_text()) for path in here]
    assert [fact["compute"]["stack"] for fact in facts] == [2, 2, 1]
    assert all(fact["seconds"] > 0 for fact in facts)
    assert project("experts verify").out.endswith("5 experts, 0 damaged\n")
    assert sorted(e["epochs"] for e in project("experts ls --json").json) == [2, 2, 2, 4, 4]


def test_an_interrupted_stack_goes_on_in_another_one(
    project: Any, launch: Any, wait_until: Any, tmp_path: Path
) -> None:
    alone = project.copy(tmp_path / "alone")
    alone(f"experts build {EPOCHS} 8")
    file = project.home / "espctl.toml"
    file.write_text(file.read_text().replace("[compute]", "[compute]\ncheckpoint_every = 0.0001"))
    seen: list[int] = []

    def further() -> bool:
        partials = list((project.home / "experts").glob("*/*.partial"))
        reached = [len(artifact.load(path).tensors["theta"]) for path in partials]
        if len(reached) < 3 or max(reached) <= max(seen, default=0):
            return False
        seen.append(max(reached))
        return True

    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = launch(project, f"experts build {EPOCHS} 8 --stack 3")
        wait_until(further, "nothing is saved")
        process.kill(number)
        assert process.wait().code == code
    project(f"experts build {EPOCHS} 8 --stack 2")
    for one, other in zip(experts_of(project, 8), experts_of(alone, 8), strict=True):
        require_equal(one, other)
    assert not list((project.home / "experts").glob("*/*.partial"))


def test_scores_of_a_stack_are_those_of_one_by_one(project: Any, tmp_path: Path) -> None:
    alone = project.copy(tmp_path / "alone")
    [run] = project.runs("esp")
    command = f"evaluate {run.name} --epochs 4 --seeds 3 --json"
    stacked, wanted = project(f"{command} --stack 3").json, alone(command).json
    assert [(s["run"], s["n"]) for s in stacked] == [(s["run"], s["n"]) for s in wanted]
    for place in (alone.home, project.home):
        assert len(list(place.glob("runs/*/evaluations/*.json"))) == 3 * len(wanted)
    for path in sorted(alone.home.glob("runs/*/evaluations/*.json")):
        one = json.loads((project.home / path.relative_to(alone.home)).read_text())
        other = json.loads(path.read_text())
        assert one.keys() == other.keys()
        assert (one["compute"].pop("stack"), other["compute"].pop("stack")) == (3, 1)
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)
        same = ("protocol", "protocol_hash", "recipe", "network", "seed", "epochs", "lr", "compute", "device")
        assert [one[name] for name in same] == [other[name] for name in same]


def test_one_seed_that_is_missing_is_scored_alone_in_the_same_place(project: Any) -> None:
    [run] = project.runs("esp")
    project(f"evaluate {run.name} --epochs 3 --seeds 3 --stack 3 --no-baseline")
    [path] = run.glob("evaluations/*.s1.json")
    before = json.loads(path.read_text())
    path.unlink()
    project(f"evaluate {run.name} --epochs 3 --seeds 3 --stack 3 --no-baseline")
    assert json.loads(path.read_text())["accuracy"] == pytest.approx(before["accuracy"], abs=0.02)


def test_networks_that_cannot_be_stacked_are_refused_with_a_sentence(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownnoisy.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    [run] = project.runs("esp")
    build = "experts build --dataset digits --count 2 --epochs 1 --network ownnoisy:noisy"
    score = f"evaluate {run.name} --epochs 1 --no-baseline --network ownnoisy:noisy"
    for command in (build, score):
        assert "cannot be trained as a stack" in project(f"{command} --stack 2", code=1).err
        project(command)  # left to itself the program trains them one by one


def test_a_stack_that_is_nonsense_is_refused(project: Any) -> None:
    project("experts build --dataset digits --stack -1", code=2)
    (project.home / "espctl.toml").write_text("[compute]\nstack = -1\n")
    assert "compute.stack" in project("experts build --dataset digits", code=1).err


def test_the_size_of_a_stack() -> None:
    network = build_network("convnet3,width=4", (1, 8, 8), 10)
    cpu = Compute(device="cpu")
    assert stack_of(cpu, network, 8, 100) == 1  # by itself never more on a CPU
    assert stack_of(replace(cpu, stack=1), network, 8, 100) == 1
    assert stack_of(replace(cpu, stack=7), network, 8, 100) == 7
    assert stack_of(replace(cpu, stack=7), network, 8, 3) == 3
    assert stack_of(replace(cpu, stack=7), network, 8, 0) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_takes_as_many_as_fit() -> None:
    network = build_network("convnet3", (3, 32, 32), 10)
    cuda = Compute(device="cuda")
    assert stack_of(cuda, network, 10, 5) == 5
    assert 1 < stack_of(cuda, network, 256, 10_000) < 10_000
    assert stack_of(cuda, network, 256, 5, host_bytes=10**9) <= 2


def test_short_scoring_stays_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    cpu = Compute(device="cpu")
    assert jobs_of(cpu, 4, 1e6, 10) == 1
    assert jobs_of(cpu, 1, 1e18, 10) == 1
    assert jobs_of(cpu, 3, 1e18, 10) == 3
    assert jobs_of(cpu, 4, 1e6, 10**6) == 4
    assert jobs_of(cpu, 5, 1e18, 10) == 1, "three cores would wait for the fifth"
    assert jobs_of(cpu, 79, 1e18, 10) == 4, "one core waits for a twentieth of the time"
    assert jobs_of(replace(cpu, stack=5), 5, 1e18, 10) == 1
    assert jobs_of(replace(cpu, threads=10_000), 5, 1e18, 10) == 1


def test_disk_that_is_not_there_is_said_before_anything_is_trained(project: Any) -> None:
    before = sorted(path.name for path in (project.home / "experts").iterdir())
    done = project("experts build --dataset digits --count 100 --epochs 1000000000", code=1)
    assert "GB, with what they need in training, and" in done.err
    assert "GB free" in done.err
    assert sorted(path.name for path in (project.home / "experts").iterdir()) == before
