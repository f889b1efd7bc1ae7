"""Trajectory matching: MTT (Cazenavette et al., CVPR 2022) and TESLA's cheaper gradient (Cui et al., ICML 2023).

methods.md 11 and 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Rates, View, mean_gradient
from esp.methods._options import require_options, require_segments
from esp.optim import below, prefixed, sgd
from esp.parametrisation import decode_all
from esp.rng import Key

Gradient = Literal["unrolled", "tesla"]
Batch = tuple[Tensor, augment.Draw]
"""What a student sees in one step: rows [b] of the synthetic set, and how they are augmented."""


@dataclass(frozen=True)
class MTT:
    """Make a student that is trained on the synthetic set arrive where an expert is some epochs later.

    Loss: |theta_N - target|^2 / |theta_0 - target|^2, where theta_0 and target are snapshots of one expert. The
    student's learning rate is learned as well: `state["learned.rate"]`, saved with the set for the protocol `mtt`, and
    reported as the metric `rate`. It may become negative, as in the published code; then that protocol refuses the set.

    The defaults are those in use for CIFAR-10 at one image per class **without ZCA whitening**, in which the published
    46.3 % were reached (with it: start_max 1, lr_pixels 100). Others without it (methods.md 11.3): CIFAR-10 at ten
    images: student_steps 30, start_max 14, rate 1e-3, lr_rate 1e-5; at fifty: the same with start_max 39; CIFAR-100 at
    ten: student_steps 20, start_max 19, lr_rate 1e-5.

    Batch normalisation is frozen where the student starts (`Task.frozen`), for all of its steps.

    Attributes:
        steps: synthetic updates.
        student_steps: N, steps of the student in each.
        segment: M, epochs of the expert that they stand for.
        start_max: last start epoch, included (the published `max_start_epoch` is one more).
        batch: synthetic images per student step; 0 for all.
        rate, lr_rate: the student's learning rate at first, and how fast SGD changes it.
        lr_pixels, momentum: of SGD on pixels; the momentum is also that of the student's learning rate.
        lr_codes, lr_decoders: Adam's learning rates for latent codes, falling linearly to zero.
        augmentation: DSA strategy, one operation per student step with parameters for each image.
        gradient: `unrolled`, exact, with memory for `student_steps` vectors of weights; or `tesla`, an approximation
            that takes the student's weights for constants (equal at one student step).
        start: `noise`, `real`, or `auto`: real where the parametrisation stores images.
    """

    steps: int = 5_000
    student_steps: int = 50
    segment: int = 2
    start_max: int = 4
    batch: int = 0
    rate: float = 0.01
    lr_rate: float = 1e-7
    lr_pixels: float = 1_000.0
    momentum: float = 0.5
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    augmentation: str = augment.STRATEGY
    gradient: Gradient = "unrolled"
    start: Literal["auto", "real", "noise"] = "auto"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = True

    def _rates(self, task: Task) -> Rates:
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, self.lr_pixels, self.lr_codes, self.lr_decoders, self.momentum)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and experts that are missing, too short or of something else."""
        task.operations(self.augmentation)
        require_options(self, task, gradient=get_args(Gradient), start=("auto", "real", "noise"))
        if min(self.student_steps, self.segment) < 1 or min(self.start_max, self.batch) < 0:
            raise InputError(
                "MTT needs student_steps and segment of at least 1, and start_max and batch that are not negative",
                "correct the --set options",
            )
        require_segments("MTT", task, self.segment, self.start_max)

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set, the student's learning rate, and their optimiser."""
        state = task.start(self.start, key)
        rate = torch.tensor(self.rate, device=task.device)
        state |= self._rates(task).start(synthetic_parameters(state))
        return {**state, "learned.rate": rate, "optimiser.velocity.rate": torch.zeros_like(rate)}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One update of the synthetic set and of the student's learning rate."""
        done, parameters = int(state["step"]), synthetic_parameters(state)
        start, target = self._segment(task, done, key)
        images = decode_all(task.parametrisation, parameters)
        start, target = start.to(images), target.to(images)
        task = task.frozen(start, key.fold("step", done, "statistics"))
        batches = self._batches(task, key.fold("step", done, "student"))
        follow = unrolled if self.gradient == "unrolled" else tesla
        value, slope, rate_slope = follow(task, images, state["learned.rate"], start, target, batches)
        slopes = View(task, parameters, ()).pull(lambda _, rows: slope[rows])
        rates = self._rates(task)
        rate, memory = sgd(
            {"rate": state["learned.rate"]},
            {"rate": rate_slope},
            below("optimiser", state),
            {"rate": self.lr_rate},
            self.momentum,
        )
        state = rates.update(state, slopes, 1.0 if rates.optimiser == "sgd" else 1 - done / self.steps)
        return {**state, **prefixed("learned", rate), **prefixed("optimiser", memory)}, {"loss": value, **rate}

    def _segment(self, task: Task, done: int, key: Key) -> tuple[Tensor, Tensor]:
        """Snapshots [p] that the student starts from and aims at: experts in shuffled rounds, a random epoch."""
        assert task.experts is not None
        count = len(task.experts.trajectories)
        order = torch.randperm(count, generator=key.fold("round", done // count).generator())
        first = torch.randint(self.start_max + 1, (), generator=key.fold("step", done, "start").generator())
        snapshots = task.experts.trajectories[int(order[done % count])].segment(int(first), self.segment)
        return snapshots[0], snapshots[-1]

    def _batches(self, task: Task, key: Key) -> list[Batch]:
        """What the student sees in each of its steps: parts of permutations of the synthetic set."""
        count, generator, rows = len(task.labels), key.fold("order").generator(), list[Tensor]()
        while len(rows) < self.student_steps:
            rows += torch.split(torch.randperm(count, generator=generator), self.batch or count)
        names, augmentation = task.operations(self.augmentation), key.fold("augment").generator()
        return [
            (part, augment.draw_single(names, len(part), augmentation, shared=True))
            for part in rows[: self.student_steps]
        ]


def _see(task: Task, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Augmented images [b, c, h, w] and targets [b, classes] of a batch; differentiable in `images`."""
    rows, draw = batch
    targets = torch.nn.functional.one_hot(task.labels[rows], task.network.classes).to(images)
    return augment.apply(draw, images[rows.to(images.device)]), targets


def unrolled(
    task: Task, images: Tensor, rate: Tensor, start: Tensor, target: Tensor, batches: list[Batch]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [] of a student that takes one step for each of `batches`, and its derivatives in the images and the rate.

    Exact, and no graph of all steps is kept: with a = d loss / d theta after a step, a step's own derivatives are those
    of -rate <its gradient, a>, and a before it is a - rate H a. Memory is one vector [p] for each step, and a chunk.

    Args:
        task: with the student's network.
        images: the whole synthetic set, [n, c, h, w].
        rate: the student's learning rate [].
        start, target: weights [p] that the student begins with, and should end with.
        batches: without any the loss is 1.
    """
    visited, theta = list[Tensor](), start
    for batch in batches:
        visited.append(theta)
        theta = theta - rate * mean_gradient(task, theta, _chunks(task, images, batch))
    gap, scale = theta - target, (start - target).square().sum()
    pull, slope, rate_slope = 2 * gap / scale, torch.zeros_like(images), torch.zeros_like(rate)
    for theta, batch in zip(reversed(visited), reversed(batches), strict=True):
        leaf, count, parts = images.detach().requires_grad_(), len(batch[0]), list[Tensor]()
        x, targets = _see(task, leaf, batch)
        back = torch.zeros_like(pull)
        for part, aims in _split(task, x.detach(), targets):
            value, on_theta, on_images = task.derivatives().adjoint(theta, pull, part, aims)
            rate_slope, back = rate_slope - value / count, back + on_theta / count
            parts.append(-rate / count * on_images)
        slope += torch.autograd.grad(x, leaf, torch.cat(parts))[0]
        pull = pull - rate * back
    return gap.square().sum() / scale, slope, rate_slope


def _split(task: Task, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and targets in chunks."""
    return zip(torch.split(images, task.chunk), torch.split(targets, task.chunk), strict=True)


def _chunks(task: Task, images: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """What a student sees in a step, in chunks, without a graph."""
    return _split(task, *_see(task, images, batch))


def tesla(
    task: Task, images: Tensor, rate: Tensor, start: Tensor, target: Tensor, batches: list[Batch]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `unrolled`, but later steps are taken not to depend on earlier ones: equal for one step, else approximate.

    With G the sum of the student's gradients, theta_N = theta_0 - rate G; the derivative of the loss in G meets each
    step's gradient alone.
    """
    visited, total, theta = [], torch.zeros_like(start), start
    for batch in batches:
        gradient = mean_gradient(task, theta, _chunks(task, images, batch))
        visited.append(theta)
        total, theta = total + gradient, theta - rate * gradient
    gap, scale = start - rate * total - target, (start - target).square().sum()
    slope = torch.zeros_like(images)
    for theta, batch in zip(visited, batches, strict=True):
        leaf = images.detach().requires_grad_()
        x, targets = _see(task, leaf, batch)
        along = -2 * rate * gap / (scale * len(x))
        cotangents = [
            task.derivatives().mixed_pullback(
                theta, along, part, aims, part.new_zeros(len(part), task.network.features)
            )
            for part, aims in _split(task, x.detach(), targets)
        ]
        slope += torch.autograd.grad(x, leaf, torch.cat(cotangents))[0]
    return gap.square().sum() / scale, slope, -2 * (total @ gap) / scale
