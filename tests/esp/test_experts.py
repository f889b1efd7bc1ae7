from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esp import artifact
from esp.data.dataset import Dataset
from esp.errors import ArtifactError, InputError, MismatchError
from esp.experts import Plan, build
from esp.rng import Key
from esp.training import Recipe, Trainer, accuracy
from esp.trajectory import Experts, complaints, open_trajectory

CPU = torch.device("cpu")


class Stop:
    """Interrupts a build when so many epochs are done."""

    def __init__(self, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.epoch, self.error = epoch, error

    def __call__(self, epoch: int, loss: float, accuracy: float) -> None:
        if epoch == self.epoch:
            raise self.error


@dataclass(frozen=True)
class Fragile(Dataset):
    """A data set whose test is interrupted at the `looks`-th look."""

    looks: int = 0
    seen: tuple[list[int], ...] = ([],)

    def normalise(self, images: Tensor) -> Tensor:
        if len(images) == len(self.test_images):
            self.seen[0].append(1)
            if len(self.seen[0]) == self.looks:
                raise KeyboardInterrupt
        return super().normalise(images)


def test_a_trajectory_is_what_the_trainer_went_through(experts: Experts, plan: Plan, data: Dataset) -> None:
    for number, trajectory in enumerate(experts.trajectories):
        key = Key(plan.seed).fold("expert", number)
        trainer = Trainer(plan.network, plan.recipe, data.flips, CPU)
        begin = trainer.start(key)
        states = [begin, *trainer.epochs(begin, data.train_images, data.train_labels, data.normalise, key)]
        assert trajectory.epochs == plan.recipe.epochs
        assert torch.equal(trajectory.segment(0, 5), torch.stack([state.theta for state in states]))
        for point, state in zip(trajectory.meta["curve"], states, strict=True):
            assert point["loss"] == state.loss
            assert point["epoch"] == state.epoch
            images = data.test_images, data.test_labels
            assert point["accuracy"] == accuracy(plan.network, state.theta, *images, data.normalise, 4)


def test_snapshots_and_experts_differ(experts: Experts) -> None:
    one, two = (trajectory.segment(0, 5) for trajectory in experts.trajectories)
    assert len({tuple(row.tolist()) for row in (*one, *two)}) == 12


def test_experts_learn(learner: Any, tmp_path: Path) -> None:
    plan, data = learner
    meta = open_trajectory(build(plan, 0, data, tmp_path, CPU)).meta
    assert complaints(meta, data.num_classes) == []
    assert meta["curve"][-1]["accuracy"] > 0.8


@pytest.fixture
def learner(plan: Plan, data: Dataset) -> tuple[Plan, Dataset]:
    return replace(plan, recipe=Recipe(30, 8, 0.05, 0.9, augmentation="none")), data


def test_the_header_says_what_the_expert_is(experts: Experts, plan: Plan, data: Dataset) -> None:
    meta = experts.trajectories[1].meta
    described = {name: meta[name] for name in plan.describe()}
    assert described == plan.describe()
    assert (meta["number"], meta["epochs"], meta["parameters"]) == (1, 5, plan.network.parameters)
    assert (meta["dataset"], meta["fingerprint"], meta["classes"]) == (data.name, data.fingerprint, 3)
    experts.require(plan.network.spec, data.fingerprint, 5)


def test_the_same_plan_gives_the_same_bytes(experts: Experts, plan: Plan, data: Dataset, tmp_path: Path) -> None:
    again = build(plan, 0, data, tmp_path, CPU)
    assert again.read_bytes() == experts.trajectories[0].path.read_bytes()
    other = build(replace(plan, seed=1), 0, data, tmp_path / "other", CPU)
    assert other.read_bytes() != again.read_bytes()


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_an_interrupted_expert_goes_on_to_the_same_bytes(
    experts: Experts, plan: Plan, data: Dataset, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(plan, 1, data, tmp_path, CPU, on_epoch=Stop(epoch))
    assert [file.name for file in tmp_path.iterdir()] == ["expert-0001.partial"]
    epochs: list[int] = []
    path = build(plan, 1, data, tmp_path, CPU, on_epoch=lambda done, loss, score: epochs.append(done))
    assert path.read_bytes() == experts.trajectories[1].path.read_bytes()
    assert epochs == list(range(epoch + 1, 6))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("looks", [2, 4, 6])
def test_an_interrupt_during_a_test_loses_nothing_but_the_epoch(
    experts: Experts, plan: Plan, data: Dataset, tmp_path: Path, looks: int
) -> None:
    fragile = Fragile(**vars(data), looks=looks, seen=([],))
    with pytest.raises(KeyboardInterrupt):
        build(plan, 0, fragile, tmp_path, CPU)
    path = build(plan, 0, data, tmp_path, CPU)
    assert path.read_bytes() == experts.trajectories[0].path.read_bytes()


def test_a_killed_expert_goes_on_from_its_last_save(
    experts: Experts, plan: Plan, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(MemoryError):
        build(plan, 1, data, tmp_path, CPU, save_every=0, on_epoch=Stop(3, MemoryError))
    epochs: list[int] = []
    path = build(plan, 1, data, tmp_path, CPU, on_epoch=lambda done, loss, score: epochs.append(done))
    assert epochs == [3, 4, 5]
    assert path.read_bytes() == experts.trajectories[1].path.read_bytes()


def test_a_finished_expert_is_left_alone(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    path = build(plan, 0, data, tmp_path, CPU)
    stamp = path.stat().st_mtime_ns
    assert build(plan, 0, data, tmp_path, CPU, on_epoch=Stop(1)) == path
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("stop", [True, False], ids=["begun", "finished"])
@pytest.mark.parametrize("change", ["seed", "recipe", "data"])
def test_another_plan_in_the_same_folder_is_refused(
    plan: Plan, data: Dataset, tmp_path: Path, change: str, stop: bool
) -> None:
    if stop:
        with pytest.raises(KeyboardInterrupt):
            build(plan, 0, data, tmp_path, CPU, on_epoch=Stop(1))
    else:
        build(plan, 0, data, tmp_path, CPU)
    other, seen = {
        "seed": (replace(plan, seed=1), data),
        "recipe": (replace(plan, recipe=replace(plan.recipe, lr=0.5)), data),
        "data": (plan, replace(data, fingerprint="0" * 64)),
    }[change]
    with pytest.raises(MismatchError, match=r"expert-0000.* was made with another plan or data set"):
        build(other, 0, seen, tmp_path, CPU)


def test_a_damaged_save_is_found(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(plan, 0, data, tmp_path, CPU, on_epoch=Stop(2))
    partial = tmp_path / "expert-0000.partial"
    partial.write_bytes(partial.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="checksum"):
        build(plan, 0, data, tmp_path, CPU)


def test_bfloat16_halves_the_file_and_rounds_the_snapshots(
    experts: Experts, plan: Plan, data: Dataset, tmp_path: Path
) -> None:
    half = replace(plan, dtype="bfloat16")
    path = build(half, 0, data, tmp_path, CPU)
    exact = experts.trajectories[0]
    assert torch.equal(open_trajectory(path).segment(0, 5), exact.segment(0, 5).bfloat16().float())
    assert artifact.load(path).tensors["theta"].dtype == torch.bfloat16
    assert plan.bytes - half.bytes == 6 * plan.network.parameters * 2
    header = exact.path.stat().st_size - plan.bytes
    assert 0 < header < 4000
    assert abs(path.stat().st_size - half.bytes - header) < 50


def test_the_hash_of_a_plan_names_everything_about_it(plan: Plan) -> None:
    others = [
        replace(plan, seed=1),
        replace(plan, dtype="bfloat16"),
        replace(plan, recipe=replace(plan.recipe, epochs=6)),
        replace(plan, network=replace(plan.network, spec="convnet3,width=5")),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 5
    assert plan.hash == replace(plan).hash


def test_a_dtype_that_cannot_store_snapshots_is_refused(plan: Plan) -> None:
    with pytest.raises(InputError, match="dtype float8 cannot store snapshots"):
        replace(plan, dtype="float8")  # type: ignore[arg-type]
