"""The one loop: a method, on a task, from a seed.

A method is orthogonal to how the synthetic set is stored: ESP on latent codes is the paper's, ESP on pixels the same
call with another parametrisation. A method owns one step of mathematics; whoever drives the loop owns time, checkpoints
and the screen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from esp import augment
from esp.data.dataset import Dataset
from esp.derivatives import Derivatives
from esp.divergence import Watch
from esp.errors import DivergedError, InputError
from esp.memory import fitted
from esp.networks.flat import Network
from esp.optim import Tensors, below
from esp.parametrisation import Parametrisation, labels
from esp.parts import is_part
from esp.rng import Key
from esp.training import Recipe, Trainer
from esp.trajectory import Experts

State = Tensors
"""All that a method carries from step to step: `step` [], `set.NAME` for the synthetic set, and what else it needs.

`learned.NAME` belongs to the result without being decoded to images: `learned.rate` [], the learning rate of a student,
and `learned.labels` [n, classes], label rows of the decoded images in their order, which sum to about 1.
"""

FROZEN_BATCH = 16
"""Real images of each class that batch normalisation is frozen by."""

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
        return self._derivatives[loss].frozen(self.network)

    @cached_property
    def _trainers(self) -> dict[Recipe, Trainer]:
        return {}

    def trainer(self, recipe: Recipe) -> Trainer:
        """The training loop of the matching network, made once for each recipe."""
        if recipe not in self._trainers:
            self._trainers[recipe] = Trainer(self.network, recipe, self.data.flips, self.device, self.compile)
        return self._trainers[recipe]

    def frozen(self, theta: Tensor, key: Key) -> Task:
        """The task whose network looks through statistics of real images at theta [p]; itself without batch norm.

        They are the moments of one batch of `FROZEN_BATCH` images of each class, as DC's published code measures them
        (there they move a fresh network's a tenth of the way, methods.md 6). Then the network is a function of single
        images, and chunks change nothing.
        """
        if not self.network.statistics:
            return self
        images, _ = self.real(list(range(self.data.num_classes)), FROZEN_BATCH, key)
        return self.freeze(self.network.measure(theta.to(images), images))

    def freeze(self, statistics: Tensor) -> Task:
        """The task whose network looks through statistics [b]; it shares compiled programs with this one."""
        if not self.network.statistics:
            return self
        return self._with("network", self.network.freeze(statistics))

    def chunked(self, chunk: int) -> Task:
        """The task with another `chunk`; it shares compiled programs with this one."""
        return self if chunk == self.chunk else self._with("chunk", chunk)

    def _with(self, name: str, value: object) -> Task:
        _ = self._derivatives, self._trainers  # made now, so that the copy has the same
        other = copy.copy(self)
        object.__setattr__(other, name, value)
        return other

    def operations(self, strategy: str) -> tuple[str, ...]:
        """The augmentations of a strategy string that keep the labels of this data set."""
        return augment.parse(strategy, self.data.flips)

    def real_rows(self, classes: list[int], count: int, key: Key) -> tuple[Tensor, Tensor]:
        """Row numbers [n] of `count` random training images of each of `classes`, or all where a class has fewer.

        They come in the order of `classes`, with their labels [n]; both on the CPU.
        """
        rows = []
        for label in classes:
            pool = self.class_rows[label]
            rows.append(pool[torch.randperm(len(pool), generator=key.fold(label).generator())[:count]])
        chosen = torch.cat(rows)
        return chosen, self.data.train_labels[chosen].cpu()

    def real(self, classes: list[int], count: int, key: Key) -> tuple[Tensor, Tensor]:
        """Normalised images [n, c, h, w] on the device, and labels [n] on the CPU, of `real_rows`; all at once."""
        rows, labels = self.real_rows(classes, count, key)
        return self.images(rows), labels

    def partners(self, key: Key) -> Tensor:
        """A random training image of the same class for every synthetic image: row numbers, int64 on the CPU.

        No image comes twice unless its class has fewer than are asked of it.
        """
        count, rows = self.parametrisation.units * self.parametrisation.multiplicity, []
        for label, pool in enumerate(self.class_rows):
            shuffled = pool[torch.randperm(len(pool), generator=key.fold(label).generator())]
            rows.append(shuffled.repeat(-(-count // len(pool)))[:count])
        return torch.cat(rows)

    @is_part("real images")
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


def condense(
    method: Method,
    task: Task,
    seed: int,
    state: State | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Iterator[tuple[State, Metrics]]:
    """Run `method` and yield state and metrics after every step; the last state holds the result.

    A step that does not fit into memory is repeated with half of `task.chunk`, until it does; the chunk stays at that.
    The result is to the bit that of a task with this chunk from that step on.

    Args:
        method: what to do.
        task: on what.
        seed: of everything random. The same method, task and seed on the same CPU give the same bits.
        state: a state that an earlier call yielded, to continue from; the rest of the run is the same to the bit.
        on_chunk: called with every smaller chunk before it is tried.

    Raises:
        OutOfMemoryError: a step does not fit into memory, even one image at a time.
        DivergedError: the step or the set that it led to is not finite, or has exploded (see `esp.divergence`). On a
            CPU that is noticed in the step itself, and the state before it was yielded. On CUDA, where reading a number
            waits for the device, only every tenth step is looked at; the error holds the last state that was.
    """
    method.check(task)
    key, remedy = Key(seed).fold("condense"), _smaller(method, task)
    chunk = task.chunk
    if state is None:
        begun, chunk = fitted(partial(_init, method, task, key), chunk, "the start", remedy, on_chunk)
        state = begun
        yield begun, {}
    watch = Watch(method, state)
    while int(state["step"]) < method.steps:
        done = int(state["step"]) + 1
        try:
            advance = partial(_step, method, task, state, key)
            (state, metrics), chunk = fitted(advance, chunk, f"step {done}", remedy, on_chunk)
        except DivergedError as error:
            raise watch.stopped(done, error.message, "") from error
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise watch.stopped(done, "a matrix has no decomposition", "") from error
        if task.device.type == "cpu" or done % 10 == 0 or done == method.steps:
            watch.look(state, metrics)
        yield state, metrics


def _init(method: Method, task: Task, key: Key, chunk: int) -> State:
    return method.init(task.chunked(chunk), key)


def _step(method: Method, task: Task, state: State, key: Key, chunk: int) -> tuple[State, Metrics]:
    return method.step(task.chunked(chunk), state, key)


_LARGE = ("student_steps", "segment", "targets", "conv_width", "conv_networks", "real_batch")
"""Options that memory grows with, whatever the chunk is."""


def _smaller(method: Method, task: Task) -> str:
    """What to lower where one image at a time is too much."""
    shown = [f"--set {name}=... (it is {getattr(method, name)})" for name in _LARGE if hasattr(method, name)]
    choices = ["--ipc", f"the width or depth of the network ({task.network.spec})", *shown[:2]]
    return f"lower {', '.join(choices[:-1])} or {choices[-1]}; or close other programs"


def learned(state: State) -> Tensors:
    """What a state learned beside the parameters of the synthetic set."""
    return below("learned", state)


def synthetic_parameters(state: State) -> Tensors:
    """The parameters of the synthetic set in a state."""
    return below("set", state)
