"""What a method cannot work with is refused, with the reason and a remedy, before it makes a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esp.core import Task, condense
from esp.data.dataset import Dataset
from esp.errors import EspError, MismatchError
from esp.experts import Plan, build
from esp.methods import METHODS
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame
from esp.parametrisation import build as build_parametrisation
from esp.registry import resolve
from esp.training import Recipe
from esp.trajectory import Experts, open_trajectory


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network without convolutions, whose levels cannot be seen."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), self.head(x.flatten(1))

    return Linear()


@dataclass(frozen=True)
class Case:
    """A method with some options, on a task that differs from the tiny one in some things."""

    method: str
    says: str
    hints: str
    stored: str = "pixels"
    blind: bool = False
    experts: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.method, self.stored, *map(str, self.options), *(["blind"] if self.blind else [])])


COMMAND = "espctl experts build --dataset tiny --network convnet3,width=4"
CASES = [
    *(Case(name, "only pixels can hold", "--parametrisation pixels", stored)
      for name in ("random", "herding", "kcenter") for stored in ("latent", "multiformation")),
    *(Case("kfs", "codes and decoders", "--parametrisation latent", stored) for stored in ("pixels", "multiformation")),
    Case("cafe", "only shows its last features", "ConvNet", blind=True),
    Case("idc", "matches convolution kernels", "another --network", blind=True),
    Case("dm", "only shows its last features", "ConvNet", blind=True, options={"layers": "all"}),
    *(Case(name, "cannot start from real images", "start=noise", "latent", options={"start": "real"})
      for name in ("cafe", "dc", "dm", "dsa", "esp", "idc", "kip", "mtt")),
    *(Case(name, "needs expert trajectories", COMMAND, experts=False)
      for name in ("esp", "mtt", "herding", "kcenter")),
    Case("dm", "needs expert trajectories", COMMAND, experts=False, options={"net_source": "expert"}),
    Case("kfs", "needs expert trajectories", COMMAND, "latent", experts=False, options={"net_source": "expert"}),
    *(Case(name, "is more than the 5 epochs", "start_max=", options={"start_max": 9, "segment": 1})
      for name in ("esp", "mtt")),
    *(Case(name, "of at least 1", "--set", options={"real_batch": 0})
      for name in ("cafe", "dc", "dm", "dsa", "esp", "idc")),
    *(Case(name, "is no learning rate", "lr_pixels=0", options={"lr_pixels": -1.0})
      for name in ("cafe", "dc", "dm", "dsa", "esp", "idc", "kip", "mtt")),
    Case("kfs", "is no learning rate", "lr_codes=0", "latent", options={"lr_codes": float("nan")}),
    *(Case(name, "momentum from 0 to below 1", "momentum", options={"momentum": 1.0})
      for name in ("cafe", "dc", "dm", "dsa", "idc", "mtt")),
    *(Case(name, "unknown start 'zeros'", "known", options={"start": "zeros"})
      for name in ("cafe", "dc", "dm", "dsa", "esp", "idc", "kip", "mtt")),
    Case("dc", "unknown distance 'l3'", "known", options={"distance": "l3"}),
    Case("dm", "unknown layers 'first'", "known", options={"layers": "first"}),
    Case("esp", "something to lower", "beta", options={"beta": 0.0, "dm": 0.0}),
    Case("esp", "of 0 or more", "beta", options={"beta": -1.0}),
    Case("kfs", "has none left", "steps", "latent", options={"steps": 3, "decoder_pretrain": 3}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_cannot_be_is_refused_with_a_remedy(make_task: Callable[..., Task], data: Dataset, case: Case) -> None:
    changes: dict[str, Any] = {} if case.experts else {"experts": None}
    if case.blind:
        changes["network"] = build_network(f"{__name__}:linear", data.shape, 3)
    task = make_task(case.stored, **changes)
    kind = resolve(METHODS, "method", case.method)
    # A segment of one epoch, where it is not what is wrong, fits the experts of five.
    fitting = {"segment": 1, "start_max": 1}
    known = {one.name for one in fields(kind)}
    method = kind(**{name: value for name, value in {**fitting, **case.options}.items() if name in known})
    for refuse in (lambda: method.check(task), lambda: next(condense(method, task, 0))):
        with pytest.raises(EspError) as caught:
            refuse()
        assert case.says in caught.value.message
        assert case.hints.removeprefix("known") in caught.value.hint


def test_experts_of_another_network_or_data_set_are_refused_by_all_who_need_them(
    make_task: Callable[..., Task], data: Dataset
) -> None:
    other = build_network("convnet3,width=5", data.shape, 3)
    for name in METHODS:
        kind = resolve(METHODS, "method", name)
        if kind.needs_experts:
            for task in (make_task(network=other), make_task(data=replace(data, fingerprint="0" * 64))):
                with pytest.raises(MismatchError, match=r"has (network|fingerprint)"):
                    kind().check(task)


def test_networks_of_experts_can_be_matched(
    make_dataset: Callable[..., Dataset], tmp_path: Any, make_task: Callable[..., Task]
) -> None:
    data = make_dataset()
    network = build_network("convnet3,width=4", data.shape, 3)
    paths = [build(Plan(network, Recipe(1, 8, 0.02)), n, data, tmp_path, torch.device("cpu")) for n in range(2)]
    experts = Experts(tuple(open_trajectory(path) for path in paths))
    dm = resolve(METHODS, "method", "dm")
    method = dm(steps=40, net_source="expert", augmentation="none", real_batch=100, lr_pixels=0.0)
    assert method.needs_experts
    assert not dm().needs_experts
    frame = Frame(3, 1, data.shape)
    task = Task(data, network, build_parametrisation("pixels", frame, {}), experts)
    losses = {round(float(metrics["dm"]), 6) for _, metrics in condense(method, task, 0) if metrics}
    assert len(losses) == 4  # two experts, two snapshots


def test_all_layers_are_the_sum_over_blocks(make_task: Callable[..., Task]) -> None:
    task, dm = make_task(ipc=2), resolve(METHODS, "method", "dm")
    given = {"steps": 1, "augmentation": "none", "real_batch": 100}
    (before, _), (_, metrics) = condense(dm(layers="all", **given), task, 0)
    from esp.rng import Key

    theta = task.network.init(Key(0).fold("condense").fold("step", 0).fold("network"))
    synthetic = [level.reshape(3, 2, -1).mean(1) for level in task.network.levels(theta, before["set.pixels"])]
    total = torch.zeros(())
    for number, rows in enumerate(task.class_rows):
        real = [level.mean(0) for level in task.network.levels(theta, task.images(rows))]
        for place in (0, 1, 3):  # the third block counts once, by the features after it
            total += (synthetic[place][number] - real[place]).square().sum()
    torch.testing.assert_close(metrics["dm"], total, rtol=1e-4, atol=0)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("stored", ["pixels", "latent"])
def test_a_subset_of_classes_moves_alone(make_task: Callable[..., Task], stored: str, layers: str) -> None:
    dm = resolve(METHODS, "method", "dm")
    drawn = set()
    for seed in range(6):
        run = condense(dm(steps=3, real_classes=1, real_batch=4, layers=layers), make_task(stored), seed)
        (before, _), (after, _) = next(run), next(run)
        name = "set.pixels" if stored == "pixels" else "set.codes"
        moved = (before[name] != after[name]).flatten(1).any(1).reshape(3, -1)
        assert moved.any(1).sum() == 1
        drawn.add(int(moved.any(1).nonzero()))
    assert drawn == {0, 1, 2}
