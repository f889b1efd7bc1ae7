"""The one training loop: experts, evaluation networks and baselines are trained by it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad

from esp import augment
from esp.cutmix import cutmix
from esp.derivatives import LOSSES, loss_sum
from esp.errors import DivergedError, InputError
from esp.files import canonical
from esp.networks.flat import Network
from esp.networks.norms import MOMENTUM
from esp.parts import part
from esp.rng import Key

SCHEDULES = ("steps", "cosine")
FIRST_FIELDS = (
    *("epochs", "batch", "lr", "momentum", "weight_decay", "milestones", "gamma", "reset_momentum"),
    *("augmentation", "mode", "cutmix", "loss"),
)
"""Fields of a recipe that its digests have always named."""


MOST = 10**9
"""Epochs, or images of a batch, at most."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained with SGD.

    Attributes:
        epochs: passes over the data.
        batch: images per step.
        lr: learning rate at the start.
        momentum: heavy-ball momentum.
        weight_decay: L2 coefficient on every parameter.
        milestones: fractions of `epochs` after which the learning rate is multiplied by `gamma`.
        gamma: see milestones.
        reset_momentum: whether a milestone also clears the momentum (as re-creating the optimiser does).
        augmentation: DSA strategy string, or `none`.
        mode: `single` draws one operation per batch, `sequence` is IDC's fixed order; parameters are per image in both.
        cutmix: probability that a batch is mixed by CutMix with Beta(1, 1).
        loss: `ce`, `bce` or `mse`.
        schedule: `steps` multiplies by `gamma` at the milestones, `cosine` falls to zero in half a wave, step by step.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    reset_momentum: bool = False
    augmentation: str = augment.STRATEGY
    mode: Literal["single", "sequence"] = "single"
    cutmix: float = 0.0
    loss: Literal["ce", "bce", "mse"] = "ce"
    schedule: Literal["steps", "cosine"] = "steps"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.lr <= 0:
            raise InputError("a training recipe needs epochs, batch and lr above zero", "give positive numbers")
        if max(self.epochs, self.batch) > MOST:
            raise InputError(f"a training recipe has at most {MOST} epochs and images in a batch", "give fewer")
        if self.mode not in ("single", "sequence") or self.loss not in LOSSES:
            raise InputError(
                f"mode={self.mode} with loss={self.loss} is no training recipe",
                f"choose single or sequence, and one of {', '.join(LOSSES)}",
            )
        if self.schedule not in SCHEDULES or (self.schedule == "cosine" and self.milestones):
            raise InputError(
                f"schedule={self.schedule} with {len(self.milestones)} milestones is no training recipe",
                "choose steps with milestones, or cosine without",
            )

    def lr_at(self, epoch: float) -> float:
        """Learning rate after so many epochs, parts of one included: 0 for the first step of the first."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.lr * self.gamma ** sum(epoch >= boundary for boundary in self.boundaries)

    def describe(self) -> dict[str, Any]:
        """The recipe as JSON. Fields that came later are left out at their defaults: names of older work stay valid."""
        return described(self, FIRST_FIELDS)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """First epoch after each milestone."""
        return tuple(math.floor(fraction * self.epochs + 1e-9) for fraction in self.milestones)


def described(value: Any, always: Collection[str], never: Collection[str] = ()) -> dict[str, Any]:
    """Fields of a dataclass as JSON: those of `always`, and of the others those that are not at their defaults."""
    found = {}
    for entry in fields(value):
        here = getattr(value, entry.name)
        if entry.name not in never and (entry.name in always or here != entry.default):
            found[entry.name] = json.loads(canonical(here))
    return found


@dataclass(frozen=True)
class Snapshot:
    """After an epoch: number of epochs done, weights [p], velocity [p], mean loss of it (None before the first).

    `statistics` [b] are the running ones of batch normalisation; of length 0 for those of a fresh network.
    """

    epoch: int
    theta: Tensor
    velocity: Tensor
    loss: float | None
    statistics: Tensor = field(default_factory=lambda: torch.empty(0))


class Trainer:
    """Trains one network on one device; compiled programs are kept between calls. `esp.stacked` trains many at once.

    Args:
        network: the architecture.
        recipe: how to train.
        flips: whether horizontal flips keep the label.
        device: where to compute.
        compile: whether to fuse the step with `torch.compile`.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        flips: bool,
        device: torch.device,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.network, self.recipe, self.device, self.compiled = network, recipe, device, compile
        self._operations = augment.parse(recipe.augmentation, flips)

    @cached_property
    def _gradient(self) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(theta [p], images, targets [n, k]) -> gradient of the mean loss [p], that loss, moments [b]."""

        def objective(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            _, logits, moments = self.network.train(theta, images)
            loss = loss_sum(logits, targets, self.recipe.loss) / len(images)
            return loss, (loss, moments)

        def gradient(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            slope, (loss, moments) = grad(objective, has_aux=True)(theta, images, targets)
            return slope, loss.detach(), moments.detach()

        return self.network.compiled(gradient) if self.compiled else gradient

    def start(self, key: Key) -> Snapshot:
        """A fresh network."""
        theta = self.network.init(key.fold("init")).to(self.device)
        return Snapshot(0, theta, torch.zeros_like(theta), None, self.network.first_statistics().to(self.device))

    def epochs(
        self,
        start: Snapshot,
        images: Tensor,
        labels: Tensor,
        prepare: Callable[[Tensor], Tensor],
        key: Key,
        scale: float = 1.0,
    ) -> Iterator[Snapshot]:
        """Train on from `start` and yield a snapshot after every epoch.

        Args:
            start: where to begin; an interrupted training continues to the same bits from any of its snapshots.
            images: [n, c, h, w], in whatever form `prepare` turns into normalised floats.
            labels: int64 [n], or target rows [n, classes].
            prepare: applied to each batch after it is gathered.
            key: names the order of the data and its augmentation.
            scale: the recipe's learning rate is multiplied by it.

        Raises:
            DivergedError: the loss of an epoch, or a weight after it, is not finite.
        """
        theta, velocity, statistics = start.theta, start.velocity, start.statistics
        if not len(statistics):
            statistics = self.network.first_statistics().to(self.device)
        for epoch in range(start.epoch, self.recipe.epochs):
            if self.recipe.reset_momentum and epoch in self.recipe.boundaries:
                velocity = torch.zeros_like(velocity)
            here = key.fold("epoch", epoch)
            total = torch.zeros((), device=self.device)
            order = torch.randperm(len(images), generator=here.fold("order").generator()).to(images.device)
            parts = torch.split(order, self.recipe.batch)
            for number, rows in enumerate(parts):
                batch, targets = self._batch(images[rows], labels[rows], prepare, here.fold("batch", number))
                with part("training a network"):
                    slope, loss, moments = self._gradient(theta, batch, targets)
                total += loss * len(rows)
                lr = scale * self.recipe.lr_at(epoch + number / len(parts))
                theta, velocity = self.step(theta, velocity, slope, lr)
                statistics = statistics + MOMENTUM * (moments - statistics)
            mean = float(total) / len(images)
            # The last step may be the one that loses the weights, after a loss that was still finite.
            if not (math.isfinite(mean) and math.isfinite(float(theta.norm()))):
                raise diverged(epoch + 1, mean)
            yield Snapshot(epoch + 1, theta, velocity, mean, statistics)

    def step(self, theta: Tensor, velocity: Tensor, slope: Tensor, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weights and velocity after a step of SGD along gradient `slope`, all [p]; or all [k, p], and lr [k, 1]."""
        velocity = self.recipe.momentum * velocity + slope + self.recipe.weight_decay * theta
        return theta - lr * velocity, velocity

    def draw(self, count: int, key: Key) -> augment.Draw:
        """What happens to `count` images of the batch that `key` names: one operation for all in each stage."""
        generator = key.fold("augment").generator()
        if self.recipe.mode == "single":
            return augment.draw_single(self._operations, count, generator, shared=True)
        return augment.draw_sequence(self._operations, count, generator)

    def targets(self, labels: Tensor) -> Tensor:
        """Rows [n, classes] of labels int64 [n]; rows stay as they are."""
        return labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, self.network.classes)

    def _batch(
        self, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], key: Key
    ) -> tuple[Tensor, Tensor]:
        """Augmented images and target rows [n, classes] of one step."""
        x = prepare(images.to(self.device))
        x = augment.apply(self.draw(len(x), key), x)
        targets = self.targets(labels.to(self.device)).to(x.dtype)
        if self.recipe.cutmix:
            return cutmix(x, targets, self.recipe.cutmix, key.fold("cutmix").generator())
        return x, targets


def diverged(epoch: int, loss: float) -> DivergedError:
    """The error of a training that lost its weights in that epoch, counted from 1, with that mean loss."""
    what = "weights are not finite" if math.isfinite(loss) else f"loss is {loss}"
    return DivergedError(f"training diverged in epoch {epoch}: the {what}", "lower the learning rate")


def accuracy(
    network: Network, theta: Tensor, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], chunk: int
) -> float:
    """Fraction of images [n, c, h, w] that the network, frozen where it must be, at theta [p] classifies correctly."""
    right = torch.zeros((), dtype=torch.int64, device=theta.device)
    with torch.no_grad():
        for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True):
            _, logits = network(theta, prepare(x.to(theta.device)))
            right += (logits.argmax(1) == y.to(theta.device)).sum()
    return int(right) / len(images)
