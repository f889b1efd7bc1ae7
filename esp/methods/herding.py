"""Selections of real images by their features in a trained network: herding and k-center (methods.md 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from esp.core import Metrics, State, Task
from esp.errors import InputError
from esp.methods._options import require_segments
from esp.parametrisation import Pixels
from esp.rng import Key


@dataclass(frozen=True)
class Herding:
    """For each class, the images whose running mean of features stays nearest to the class mean (Welling, ICML 2009).

    Features are those of the last snapshot of an expert, of images that are not augmented. Nothing is random but which
    expert looks: seed s takes number s modulo their number.
    """

    steps: ClassVar[int] = 0
    default_parametrisation: ClassVar[str] = "pixels"
    only_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        """Refuse what cannot hold real images, and experts that are missing or of something else."""
        _check("herding", task)

    def init(self, task: Task, key: Key) -> State:
        """The selection, in the order in which it was made."""
        return _selection(task, key, herd)

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """Never called."""
        raise AssertionError("a selection has no steps")


@dataclass(frozen=True)
class KCenter:
    """For each class, images that cover it: each the farthest from those before it (Sener and Savarese, ICLR 2018).

    The first is the one nearest to the class mean. Features are those of `Herding`.
    """

    steps: ClassVar[int] = 0
    default_parametrisation: ClassVar[str] = "pixels"
    only_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = True

    def check(self, task: Task) -> None:
        """Refuse what cannot hold real images, and experts that are missing or of something else."""
        _check("k-center", task)

    def init(self, task: Task, key: Key) -> State:
        """The selection, in the order in which it was made."""
        return _selection(task, key, cover)

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """Never called."""
        raise AssertionError("a selection has no steps")


def herd(features: Tensor, count: int) -> Tensor:
    """`count` different rows of features [n, d], int64: pick k minimises |(k + 1) mean - sum of picks before - row|_2.

    The first pick is the row nearest to the mean. Of equally good rows the first is taken.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free, picks = features.new_zeros(len(features)), []
    for number in range(count):
        distance = ((number + 1) * mean - total - features).norm(dim=1) + free
        pick = int(distance.argmin())
        free[pick] = torch.inf
        total = total + features[pick]
        picks.append(pick)
    return torch.tensor(picks)


def cover(features: Tensor, count: int) -> Tensor:
    """`count` different rows of features [n, d], int64: the one nearest to the mean, then farthest-first."""
    picks = [int((features.mean(0) - features).norm(dim=1).argmin())]
    nearest = features.new_full((len(features),), torch.inf)
    while len(picks) < count:
        nearest = torch.minimum(nearest, (features[picks[-1]] - features).norm(dim=1))
        nearest[picks[-1]] = -torch.inf  # a copy of a pick is as near to it as the pick itself
        picks.append(int(nearest.argmax()))
    return torch.tensor(picks)


def _check(name: str, task: Task) -> None:
    if not isinstance(task.parametrisation, Pixels):
        raise InputError(f"{name} stores real images, which only pixels can hold", "use --parametrisation pixels")
    require_segments(name, task, 0, 0)


def _selection(task: Task, key: Key, choose: Callable[[Tensor, int], Tensor]) -> State:
    """The state of a selection: `choose(features, ipc)` of every class, seen by the expert that the seed names."""
    assert task.experts is not None
    expert = task.experts.trajectories[key.seed % len(task.experts.trajectories)]
    theta = expert.segment(expert.epochs, 0)[0].to(task.device)
    task = task.freeze(expert.statistics(expert.epochs).to(task.device))
    chosen = torch.cat(
        [rows[choose(_features(task, theta, rows), task.parametrisation.frame.ipc)] for rows in task.class_rows]
    )
    tensors = task.parametrisation.init(key, lambda: task.images(chosen).cpu())
    state = {f"set.{name}": tensor.to(task.device) for name, tensor in tensors.items()}
    return {**state, "step": torch.zeros((), dtype=torch.int64)}


def _features(task: Task, theta: Tensor, rows: Tensor) -> Tensor:
    """Features [n, d] of training images at theta [p], in float64 so that near ties are decided alike everywhere."""
    with torch.no_grad():
        seen = [task.derivatives().features(theta, task.images(part)) for part in torch.split(rows, task.chunk)]
    return torch.cat(seen).double()
