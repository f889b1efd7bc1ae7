"""Scoring a synthetic set: train fresh networks on it by a named protocol and test them on real images (methods.md 4).

The accuracy after the last epoch is the score. The best of a few checks during training is kept beside it and is what
it is: a maximum over the test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from esp.data.dataset import Dataset
from esp.errors import InputError
from esp.files import canonical, sha256
from esp.networks.flat import Network
from esp.protocols import PROTOCOLS
from esp.registry import resolve
from esp.rng import Key
from esp.training import Recipe, Trainer, accuracy


@dataclass(frozen=True)
class Protocol:
    """How a synthetic set is scored.

    Attributes:
        name: what tables call it.
        recipe: how each network is trained.
        checks: evenly spaced looks at the test set, the last epoch included.
        large: (images, fraction): sets of more images than this train for the fraction of the epochs, so that huge
            decoded sets do not get ten times the steps.
    """

    name: str
    recipe: Recipe
    checks: int = 4
    large: tuple[tuple[int, float], ...] = ((5_000, 0.5), (10_000, 0.3))

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise InputError("a protocol needs at least one look at the test set", "give checks=1 or more")

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name everything about the protocol but its name."""
        return sha256(canonical({**asdict(self), "name": None}))[:12]

    def with_epochs(self, epochs: int) -> Protocol:
        """The protocol cut to `epochs`; its name says so."""
        if epochs == self.recipe.epochs:
            return self
        base = self.name.partition("@")[0]
        return replace(self, name=f"{base}@{epochs}", recipe=replace(self.recipe, epochs=epochs))

    def for_images(self, count: int) -> Recipe:
        """The recipe for a set of `count` images."""
        fraction = min([share for images, share in self.large if count > images], default=1.0)
        return replace(self.recipe, epochs=max(1, round(self.recipe.epochs * fraction)))


def protocol(name: str) -> Protocol:
    """The protocol `name`, or `name@EPOCHS` for a cut one.

    Raises:
        UnknownNameError: there is no such protocol.
        InputError: EPOCHS is not a positive number.
    """
    base, at, epochs = name.partition("@")
    found: Protocol = resolve(PROTOCOLS, "protocol", base)
    if not at:
        return found
    if not epochs.isdecimal() or int(epochs) < 1:
        raise InputError(f"protocol {name!r} does not say a number of epochs", f"write {base}@300, or {base} alone")
    return found.with_epochs(int(epochs))


# VICO's loop runs one epoch more than it says, and drops the rate after epoch E // 2 + 1 by making a new optimiser.
DSA = Protocol("dsa", Recipe(1001, 256, 0.01, 0.9, 5e-4, milestones=(0.502,), gamma=0.1, reset_momentum=True))
IDC = Protocol(
    "idc",
    Recipe(
        1000,
        64,
        0.01,
        0.9,
        5e-4,
        milestones=(2 / 3, 5 / 6),
        gamma=0.2,
        mode="sequence",
        cutmix=0.5,
        augmentation="color_crop_flip_scale_rotate",
    ),
)


@dataclass(frozen=True)
class Score:
    """What one network trained on a synthetic set achieved on the test set; accuracies are fractions.

    Attributes:
        accuracy: after the last epoch: the score.
        best_accuracy, best_epoch: the best check, chosen on the test set.
        epochs: epochs trained.
        train_loss: mean loss of the last epoch.
        curve: (epoch, accuracy) of every check.
    """

    accuracy: float
    best_accuracy: float
    best_epoch: int
    epochs: int
    train_loss: float
    curve: tuple[tuple[int, float], ...]


class Evaluator:
    """Trains networks of one architecture on one synthetic set.

    Args:
        network: the architecture.
        protocol: how to train and when to look.
        data: whose test images are the judge.
        images: normalised synthetic images [n, c, h, w]; labels: int64 [n].
        device, chunk, compile: as in `esp.core.Task`.
    """

    def __init__(
        self,
        network: Network,
        protocol: Protocol,
        data: Dataset,
        images: Tensor,
        labels: Tensor,
        device: torch.device,
        chunk: int,
        compile: bool,  # noqa: A002
    ) -> None:
        self.protocol, self.data, self.chunk = protocol, data, chunk
        self.images, self.labels = images.to(device), labels.to(device)
        self.trainer = Trainer(network, protocol.for_images(len(images)), data.flips, device, compile)

    def score(self, seed: int, on_epoch: Callable[[int], None] = lambda _: None) -> Score:
        """Train the network of `seed` and test it; `on_epoch` is called with the number of epochs done."""
        key, recipe = Key(seed).fold("evaluate"), self.trainer.recipe
        looks = {round(recipe.epochs * (i + 1) / self.protocol.checks) for i in range(self.protocol.checks)}
        curve: list[tuple[int, float]] = []
        loss = math.nan
        for snapshot in self.trainer.epochs(self.trainer.start(key), self.images, self.labels, lambda x: x, key):
            loss = snapshot.loss if snapshot.loss is not None else loss
            on_epoch(snapshot.epoch)
            if snapshot.epoch in looks:
                curve.append((snapshot.epoch, self._test(snapshot.theta)))
        best_epoch, best = max(curve, key=lambda point: point[1])
        return Score(curve[-1][1], best, best_epoch, recipe.epochs, loss, tuple(curve))

    def _test(self, theta: Tensor) -> float:
        network = self.trainer.network
        return accuracy(network, theta, self.data.test_images, self.data.test_labels, self.data.normalise, self.chunk)
