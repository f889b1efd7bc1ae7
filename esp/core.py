"""The one loop: a method, on a task, from a seed.

A method is orthogonal to how the synthetic set is stored: ESP on latent codes is the paper's, ESP on pixels the same
call with another parametrisation. A method owns one step of mathematics; whoever drives the loop owns time, checkpoints
and the screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from esp import augment
from esp.data.dataset import Dataset
from esp.derivatives import Derivatives
from esp.errors import DivergedError, InputError
from esp.networks.flat import Network
from esp.optim import Tensors, below
from esp.parametrisation import Parametrisation, labels
from esp.rng import Key
from esp.training import Recipe, Trainer
from esp.trajectory import Experts

State = Tensors
"""All that a method carries from step to step: `step` [], `set.NAME` for the synthetic set, and what else it needs."""

Metrics = dict[str, Tensor]
"""Scalars [] of one step, left on their device."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is condensed, into what, seen through which network.

    Attributes:
        data: the real data set.
        network: the matching network.
        parametrisation: how the synthetic set is stored; it knows classes and images per class.
        experts: trajectories, for methods that need them.
        device: where to compute.
        chunk: images per pass; bounds memory and never changes what is computed, beyond rounding.
        compile: whether to fuse derivatives with `torch.compile`.
    """

    data: Dataset
    network: Network
    parametrisation: Parametrisation
    experts: Experts | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    chunk: int = 512
    compile: bool = False

    def __post_init__(self) -> None:
        smallest = min(len(rows) for rows in self.class_rows)
        if self.parametrisation.frame.ipc > smallest:
            raise InputError(
                f"{self.parametrisation.frame.ipc} images per class are more than the smallest class of "
                f"{self.data.name} has ({smallest})",
                f"give --ipc {smallest} or fewer",
            )

    @cached_property
    def class_rows(self) -> list[Tensor]:
        """Row numbers of each class in the training set."""
        return self.data.class_indices()

    @cached_property
    def labels(self) -> Tensor:
        """Class of every synthetic image, int64 on the CPU."""
        return labels(self.parametrisation)

    @cached_property
    def _derivatives(self) -> dict[str, Derivatives]:
        return {}

    def derivatives(self, loss: str = "ce") -> Derivatives:
        """The derivatives of the matching network, made once for each loss."""
        if loss not in self._derivatives:
            self._derivatives[loss] = Derivatives(self.network, loss, self.compile)
        return self._derivatives[loss]

    @cached_property
    def _trainers(self) -> dict[Recipe, Trainer]:
        return {}

    def trainer(self, recipe: Recipe) -> Trainer:
        """The training loop of the matching network, made once for each recipe."""
        if recipe not in self._trainers:
            self._trainers[recipe] = Trainer(self.network, recipe, self.data.flips, self.device, self.compile)
        return self._trainers[recipe]

    def operations(self, strategy: str) -> tuple[str, ...]:
        """The augmentations of a strategy string that keep the labels of this data set."""
        return augment.parse(strategy, self.data.flips)

    def real(self, classes: list[int], count: int, key: Key) -> tuple[Tensor, Tensor]:
        """`count` random training images of each of `classes`, or all where a class has fewer.

        Returns:
            Normalised images [n, c, h, w] on the device, in class order, and their labels [n] on the CPU.
        """
        rows = []
        for label in classes:
            pool = self.class_rows[label]
            rows.append(pool[torch.randperm(len(pool), generator=key.fold(label).generator())[:count]])
        chosen = torch.cat(rows)
        return self.images(chosen), self.data.train_labels[chosen].cpu()

    def partners(self, key: Key) -> Tensor:
        """A random training image of the same class for every synthetic image: row numbers, int64 on the CPU.

        No image comes twice unless its class has fewer than are asked of it.
        """
        count, rows = self.parametrisation.units * self.parametrisation.multiplicity, []
        for label, pool in enumerate(self.class_rows):
            shuffled = pool[torch.randperm(len(pool), generator=key.fold(label).generator())]
            rows.append(shuffled.repeat(-(-count // len(pool)))[:count])
        return torch.cat(rows)

    def images(self, rows: Tensor) -> Tensor:
        """The training images of some row numbers, normalised, [n, c, h, w] on the device."""
        images = self.data.train_images[rows.to(self.data.train_images.device)]
        return self.data.normalise(images.to(self.device))

    def start(self, source: str, key: Key) -> State:
        """A fresh synthetic set under `set.`, and step 0.

        Args:
            source: `noise`, `real` images chosen at random, or `auto`: real where the parametrisation stores images.
            key: names the choice.
        """
        if source == "auto":
            source = "real" if self.parametrisation.stores_images else "noise"
        if source not in ("noise", "real"):
            raise InputError(f"start={source} is no way to start a synthetic set", "choose noise, real or auto")
        real = (lambda: self.images(self.partners(key.fold("real"))).cpu()) if source == "real" else None
        tensors = self.parametrisation.init(key, real)
        state = {f"set.{name}": tensor.to(self.device) for name, tensor in tensors.items()}
        return {**state, "step": torch.zeros((), dtype=torch.int64)}


class Method(Protocol):
    """A condensation method: an immutable value whose fields are its options and whose defaults are its paper's.

    Attributes:
        steps: synthetic updates; 0 for a selection, whose `init` already holds the answer.
        needs_experts: whether `Task.experts` must be there.
        default_parametrisation: how its paper stores the synthetic set.
    """

    default_parametrisation: ClassVar[str]
    needs_experts: ClassVar[bool]

    @property
    def steps(self) -> int:
        """Synthetic updates in all."""

    def check(self, task: Task) -> None:
        """Raise an `EspError` if the method cannot work on `task`; called before anything else."""

    def init(self, task: Task, key: Key) -> State:
        """The state before the first step."""

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One synthetic update. `state["step"]` counts the updates done; both values are replaced, not changed."""


def condense(method: Method, task: Task, seed: int, state: State | None = None) -> Iterator[tuple[State, Metrics]]:
    """Run `method` and yield state and metrics after every step; the last state holds the result.

    Args:
        method: what to do.
        task: on what.
        seed: of everything random. The same method, task and seed on the same CPU give the same bits.
        state: a state that an earlier call yielded, to continue from; the rest of the run is the same to the bit.

    Raises:
        DivergedError: a metric of the last step, or at the end the synthetic set, is not finite. The state before it
            was yielded.
    """
    method.check(task)
    key = Key(seed).fold("condense")
    if state is None:
        state = method.init(task, key)
        yield state, {}
    while int(state["step"]) < method.steps:
        state, metrics = method.step(task, state, key)
        done = int(state["step"])
        # Reading a number waits for the device, so on CUDA only every tenth step is looked at.
        if task.device.type == "cpu" or done % 10 == 0 or done == method.steps:
            _require_finite(metrics, done)
        if done == method.steps:
            _require_finite({name: value.abs().sum() for name, value in synthetic_parameters(state).items()}, done)
        yield state, metrics


def _require_finite(metrics: Metrics, step: int) -> None:
    for name, value in metrics.items():
        if not math.isfinite(float(value)):
            raise DivergedError(
                f"step {step} diverged: {name} is {float(value)}", "lower the learning rates (--set lr_...=)"
            )


def synthetic_parameters(state: State) -> Tensors:
    """The parameters of the synthetic set in a state."""
    return below("set", state)
