"""Scoring a synthetic set: train fresh networks on it by a named protocol and test them on real images (methods.md 4).

The accuracy after the last epoch is the score. The best of a few checks during training is kept beside it and is what
it is: a maximum over the test set. A protocol that selects chooses on held-out *training* images instead, and tests
once, at that choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp

from esp.data.dataset import Dataset
from esp.errors import InputError, MismatchError
from esp.networks.flat import Network
from esp.recipes import DC, DSA, IDC, KIP2NN, MTT, Protocol, derive, protocol
from esp.rng import Key
from esp.training import Snapshot, Trainer, accuracy

__all__ = ["DC", "DSA", "IDC", "KIP2NN", "MTT", "Evaluator", "Protocol", "Score", "derive", "protocol", "stable_rate"]

STABLE_IMAGES = 50
"""Real images from whose tangent kernel the largest stable learning rate is read."""


@dataclass(frozen=True)
class Score:
    """What one network trained on a synthetic set achieved on the test set; accuracies are fractions.

    Attributes:
        accuracy: after the last epoch, or at the choice of a protocol that selects: the score.
        best_accuracy, best_epoch: the best check, chosen on the test set; None where the test set was looked at once.
        epochs: epochs trained.
        train_loss: mean loss of the last epoch.
        curve: (epoch, accuracy) of every check; on held-out training images where the protocol selects.
        lr: the learning rate at the start.
        selected_epoch, held_out_accuracy: the choice of a protocol that selects, and the accuracy that made it.
    """

    accuracy: float
    best_accuracy: float | None
    best_epoch: int | None
    epochs: int
    train_loss: float
    curve: tuple[tuple[int, float], ...]
    lr: float
    selected_epoch: int | None = None
    held_out_accuracy: float | None = None


@dataclass(frozen=True)
class _Choice:
    """The best look so far: on what it is judged, where it was, and the network there."""

    accuracy: float
    epoch: int
    lr: float
    snapshot: Snapshot
    loss: float
    curve: tuple[tuple[int, float], ...]


class Evaluator:
    """Trains networks of one architecture on one synthetic set.

    Args:
        network: the architecture.
        protocol: how to train and when to look.
        data: whose test images are the judge, in the pixel space of the synthetic set. What a protocol selects on is a
            held-out part of its training images: the set was condensed from them, so accuracies there flatter it;
            the choice costs no look at the test set, and that is all it is good for.
        images: synthetic images [n, c, h, w] in that space.
        labels: int64 [n], or label rows [n, classes] that sum to about 1. Cross-entropies take rows as distributions,
            negative entries dropped; `mse` takes them as they are.
        device, chunk, compile: as in `esp.core.Task`.
        rate: the learning rate that was learned with the set, if any.

    Raises:
        InputError: the protocol needs a learned rate, and there is none that can be used.
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
        rate: float | None = None,
    ) -> None:
        self.protocol, self.data, self.chunk = protocol, data, chunk
        self.images, self.labels = images.to(device), _targets(labels, protocol.recipe.loss).to(device)
        self.trainer = Trainer(network, protocol.for_images(len(images)), data.flips, device, compile)
        self._rate = require_rate(protocol, rate) if protocol.lr_of == "learned" else 1.0

    def score(self, seed: int, on_epoch: Callable[[int], None] = lambda _: None) -> Score:
        """Train the network of `seed` and test it; `on_epoch` is called with the number of epochs done."""
        key = Key(seed).fold("evaluate")
        start = self.trainer.start(key)
        scale = self._rate if self.protocol.lr_of != "stable" else self._stable(start.theta)
        if self.protocol.select == "held-out":
            return self._selected(key, start, scale, on_epoch)
        curve: list[tuple[int, float]] = []
        loss = math.nan
        for snapshot, look in self._train(key, start, scale):
            loss = snapshot.loss if snapshot.loss is not None else loss
            on_epoch(snapshot.epoch)
            if look:
                curve.append((snapshot.epoch, self._test(snapshot, self.data)))
        best_epoch, best = max(curve, key=lambda point: point[1])
        recipe = self.trainer.recipe
        return Score(curve[-1][1], best, best_epoch, recipe.epochs, loss, tuple(curve), scale * recipe.lr)

    def train(self, seed: int, on_epoch: Callable[[int], None] = lambda _: None) -> tuple[Network, Tensor]:
        """The network of `seed` as `score` tests it after the last epoch, and its weights [p]; nothing is tested.

        Raises:
            InputError: the protocol chooses another epoch than the last.
        """
        if self.protocol.select != "last":
            raise InputError(
                f"the protocol {self.protocol.name} chooses among its epochs", "give one that ends with the last epoch"
            )
        key = Key(seed).fold("evaluate")
        last = start = self.trainer.start(key)
        scale = self._rate if self.protocol.lr_of != "stable" else self._stable(start.theta)
        for last, _ in self._train(key, start, scale):
            on_epoch(last.epoch)
        return self.trainer.network.freeze(last.statistics), last.theta

    def _train(self, key: Key, start: Snapshot, scale: float) -> Iterator[tuple[Snapshot, bool]]:
        """Every epoch's snapshot, and whether the protocol looks at it."""
        epochs, checks = self.trainer.recipe.epochs, self.protocol.checks
        looks = {round(epochs * (i + 1) / checks) for i in range(checks)}
        for snapshot in self.trainer.epochs(start, self.images, self.labels, lambda x: x, key, scale):
            yield snapshot, snapshot.epoch in looks

    def _selected(self, key: Key, start: Snapshot, scale: float, on_epoch: Callable[[int], None]) -> Score:
        """Train with every learning rate, choose rate and epoch on held-out training images, then test that choice."""
        recipe, judge = self.trainer.recipe, self.data.held_out(self.protocol.held_out)
        best: _Choice | None = None
        done = 0

        def report(epoch: int) -> None:
            on_epoch(done + epoch)

        for lr in self.protocol.lrs or (scale * recipe.lr,):
            found = self._best_look(key, start, lr, judge, report)
            done += recipe.epochs
            best = found if best is None or found.accuracy > best.accuracy else best
        assert best is not None  # a protocol has a look, and there is a learning rate
        tested = self._test(best.snapshot, self.data)
        chosen = {"lr": best.lr, "selected_epoch": best.epoch, "held_out_accuracy": best.accuracy}
        return Score(tested, None, None, recipe.epochs, best.loss, best.curve, **chosen)  # type: ignore[arg-type]

    def _best_look(
        self, key: Key, start: Snapshot, lr: float, judge: Dataset, on_epoch: Callable[[int], None]
    ) -> _Choice:
        """The look at one training that is best on the test images of `judge`; of equals the first."""
        best, curve, loss = (-1.0, 0, start), list[tuple[int, float]](), math.nan
        for snapshot, look in self._train(key, start, lr / self.trainer.recipe.lr):
            loss = snapshot.loss if snapshot.loss is not None else loss
            on_epoch(snapshot.epoch)
            if look:
                curve.append((snapshot.epoch, self._test(snapshot, judge)))
                if curve[-1][1] > best[0]:
                    best = (curve[-1][1], snapshot.epoch, snapshot)
        return _Choice(best[0], best[1], lr, best[2], loss, tuple(curve))

    def _stable(self, theta: Tensor) -> float:
        rows = torch.randperm(len(self.data.train_images), generator=Key(0).fold("stable").generator())[:STABLE_IMAGES]
        images = self.data.normalise(self.data.train_images[rows].to(theta.device))
        network = self.trainer.network
        return stable_rate(network.freeze(network.measure(theta, images)), theta, images)

    def _test(self, snapshot: Snapshot, judge: Dataset) -> float:
        network = self.trainer.network.freeze(snapshot.statistics)
        return accuracy(network, snapshot.theta, judge.test_images, judge.test_labels, judge.normalise, self.chunk)


def require_rate(protocol: Protocol, rate: float | None) -> float:
    """The learning rate of a set for a protocol that takes the learned one: the set's, or else the protocol's fallback.

    Raises:
        MismatchError: the set came without one, and the protocol has no fallback.
        InputError: the learned rate is not above zero: training with it would climb.
    """
    if rate is None and not protocol.fallback_lr:
        raise MismatchError(
            f"the protocol {protocol.name} trains with the learning rate that was learned with a set, "
            "and this set came without one",
            f'score it by --protocol dsa, or by a protocol of your own: base = "{protocol.name}", fallback_lr = 0.01',
        )
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(
            f"the learning rate that was learned with this set is {rate:.3g}, nothing can be trained with it",
            "score it by --protocol dsa, or condense again with a lower lr_rate",
        )
    return protocol.fallback_lr if rate is None else rate


def stable_rate(network: Network, theta: Tensor, images: Tensor, most: int = 200) -> float:
    """The largest learning rate at which gradient descent on half the mean square error contracts at theta [p].

    2 n k / lambda, where lambda is the largest eigenvalue of the empirical tangent kernel [n, n] of the sum of the k
    logits over sqrt(k), on images [n, c, h, w]; by power iteration, which holds a few vectors [p] and no Jacobian.
    """
    classes = network.classes

    def outputs(weights: Tensor) -> Tensor:
        return network(weights, images)[1].sum(1) / math.sqrt(classes)

    vector = torch.full((len(images),), 1 / math.sqrt(len(images))).to(theta)
    value, before = 0.0, -1.0
    pull = vjp(outputs, theta)[1]
    for _ in range(most):
        product = jvp(outputs, (theta,), (pull(vector)[0],))[1]
        value = float(product.norm())
        if not value or abs(value - before) <= 1e-6 * value:
            break
        before, vector = value, product / value
    if not value:
        raise InputError("the network's output depends on none of its weights", "give another network")
    return 2 * len(images) * classes / value


def _targets(labels: Tensor, loss: str) -> Tensor:
    """Labels as training takes them: int64 [n], or rows [n, classes], made distributions for a cross-entropy."""
    if labels.ndim == 1 or loss == "mse":
        return labels
    positive = labels.clamp(min=0)
    return positive / positive.sum(1, keepdim=True).clamp(min=1e-12)
