"""Scoring a synthetic set: train fresh networks on it by a named protocol and test them on real images (methods.md 4).

The accuracy after the last epoch is the score. The best of a few checks during training is kept beside it and is what
it is: a maximum over the test set. A protocol that selects chooses on held-out *training* images instead, and tests
once, at that choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from esp.data.dataset import Dataset
from esp.errors import DivergedError, InputError
from esp.networks.flat import Network
from esp.rates import STABLE_IMAGES, require_rate, stable_rate
from esp.recipes import DC, DSA, IDC, KIP2NN, MTT, Protocol, derive, protocol
from esp.rng import Key
from esp.stacked import Stack, Together, accuracies, halved
from esp.training import Snapshot, Trainer, accuracy

__all__ = [
    "DC",
    "DSA",
    "IDC",
    "KIP2NN",
    "MTT",
    "Evaluator",
    "Protocol",
    "Score",
    "derive",
    "protocol",
    "require_rate",
    "stable_rate",
]


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


@dataclass
class _Course:
    """One training of one network: its learning rate at the start, the looks at it, and the best of them.

    Attributes:
        lr: see above.
        snapshot: where the first of the best looks was; the start before any.
        best: accuracy there.
        loss: of the last look's epoch.
        curve: (epoch, accuracy) of every look.
        error: what ended the training before its end.
    """

    lr: float
    snapshot: Snapshot
    best: float = -1.0
    loss: float = math.nan
    curve: list[tuple[int, float]] = field(default_factory=list)
    error: DivergedError | None = None

    def enter(self, snapshot: Snapshot, accuracy: float) -> None:
        """Take a look in."""
        self.curve.append((snapshot.epoch, accuracy))
        self.loss = snapshot.loss if snapshot.loss is not None else self.loss
        if accuracy > self.best:
            self.snapshot, self.best = snapshot, accuracy


def _last_look(course: _Course, lr: float) -> Score:
    """The score of a protocol that ends with its last epoch, which is a look; the best one is kept beside it."""
    best_epoch, best = max(course.curve, key=lambda point: point[1])
    epoch, last = course.curve[-1]
    return Score(last, best, best_epoch, epoch, course.loss, tuple(course.curve), lr)


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
        """Train the network of `seed` and test it; `on_epoch` is called with the number of epochs done.

        Raises:
            DivergedError: training diverged.
        """
        (found,) = self.scores([seed], lambda _, epoch: on_epoch(epoch))
        if isinstance(found, DivergedError):
            raise found
        return found

    def scores(
        self, seeds: Sequence[int], on_epoch: Callable[[int, int], None] = lambda _seed, _epoch: None
    ) -> list[Score | DivergedError]:
        """Train the networks of several seeds at once and test them; one seed alone is trained as `score` does.

        Every seed's score is that of its network alone, as equal as `esp.stacked` tells. Where all of them do not fit
        into memory, they are trained in halves.

        Args:
            seeds: one for each network.
            on_epoch: called with (seed, number of epochs done).

        Returns:
            For each seed its score, or the error that its training diverged with.

        Raises:
            InputError: there are several seeds, and the network cannot be stacked.
        """
        return halved(lambda some: self._scores(some, on_epoch), list(seeds))

    def _scores(self, seeds: Sequence[int], on_epoch: Callable[[int, int], None]) -> list[Score | DivergedError]:
        keys = [Key(seed).fold("evaluate") for seed in seeds]
        starts = [self.trainer.start(key) for key in keys]
        if self.protocol.lr_of == "stable":
            scales = [self._stable(start.theta) for start in starts]
        else:
            scales = [self._rate] * len(seeds)
        recipe, done = self.trainer.recipe, 0

        def report(epoch: int) -> None:
            for seed in seeds:
                on_epoch(seed, done + epoch)

        if self.protocol.select != "held-out":
            courses = self._courses(keys, starts, scales, self.data, report)
            return [
                course.error or _last_look(course, scale * recipe.lr)
                for course, scale in zip(courses, scales, strict=True)
            ]
        judge = self.data.held_out(self.protocol.held_out)
        tried: list[list[_Course]] = []
        for rates in [[lr] * len(seeds) for lr in self.protocol.lrs] or [[scale * recipe.lr for scale in scales]]:
            tried.append(self._courses(keys, starts, [lr / recipe.lr for lr in rates], judge, report))
            done += recipe.epochs
        return [self._chosen([courses[i] for courses in tried]) for i in range(len(seeds))]

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
        for snapshot in self.trainer.epochs(start, self.images, self.labels, lambda x: x, key, scale):
            yield snapshot, snapshot.epoch in self._looks

    @property
    def _looks(self) -> set[int]:
        """Epochs after which the protocol looks at the test set; the last is one of them."""
        epochs, checks = self.trainer.recipe.epochs, self.protocol.checks
        return {round(epochs * (i + 1) / checks) for i in range(checks)}

    @cached_property
    def stack(self) -> Stack:
        """What trains several networks at once.

        Raises:
            InputError: they cannot be stacked.
        """
        return Stack(self.trainer)

    def _courses(
        self,
        keys: Sequence[Key],
        starts: Sequence[Snapshot],
        scales: Sequence[float],
        judge: Dataset,
        on_epoch: Callable[[int], None],
    ) -> list[_Course]:
        """Train every network and look at it on the test images of `judge`: one by itself, several as a stack."""
        rates = [scale * self.trainer.recipe.lr for scale in scales]
        courses = [_Course(lr, start) for lr, start in zip(rates, starts, strict=True)]
        if len(keys) == 1:
            self._alone(courses[0], keys[0], scales[0], judge, on_epoch)
            return courses
        for together in self.stack.epochs(starts, self.images, self.labels, lambda x: x, keys, scales):
            on_epoch(together.epoch)
            if together.epoch in self._looks:
                self._look(courses, together, judge)
                if all(course.error for course in courses):
                    break
        return courses

    def _alone(self, course: _Course, key: Key, scale: float, judge: Dataset, on_epoch: Callable[[int], None]) -> None:
        try:
            for snapshot, look in self._train(key, course.snapshot, scale):
                on_epoch(snapshot.epoch)
                if look:
                    course.enter(snapshot, self._test(snapshot, judge))
        except DivergedError as error:
            course.error = error

    def _look(self, courses: Sequence[_Course], together: Together, judge: Dataset) -> None:
        """Test all members of a stack and enter those that have not diverged."""
        tests = judge.test_images, judge.test_labels, judge.normalise
        found = accuracies(self.trainer.network, together.theta, together.statistics, *tests, self.chunk)
        for course, snapshot, score in zip(courses, together.snapshots(), found, strict=True):
            if isinstance(snapshot, DivergedError):
                course.error = snapshot
            else:
                course.enter(snapshot, score)

    def _chosen(self, courses: Sequence[_Course]) -> Score | DivergedError:
        """The rate and the epoch that were best on held-out images, of equals the first; then a test of that choice."""
        for course in courses:
            if course.error:
                return course.error
        best = max(courses, key=lambda course: course.best)
        chosen = {"lr": best.lr, "selected_epoch": best.snapshot.epoch, "held_out_accuracy": best.best}
        tested, epochs = self._test(best.snapshot, self.data), self.trainer.recipe.epochs
        return Score(tested, None, None, epochs, best.loss, tuple(best.curve), **chosen)  # type: ignore[arg-type]

    def _stable(self, theta: Tensor) -> float:
        rows = torch.randperm(len(self.data.train_images), generator=Key(0).fold("stable").generator())[:STABLE_IMAGES]
        images = self.data.normalise(self.data.train_images[rows].to(theta.device))
        network = self.trainer.network
        return stable_rate(network.freeze(network.measure(theta, images)), theta, images)

    def _test(self, snapshot: Snapshot, judge: Dataset) -> float:
        network = self.trainer.network.freeze(snapshot.statistics)
        return accuracy(network, snapshot.theta, judge.test_images, judge.test_labels, judge.normalise, self.chunk)


def _targets(labels: Tensor, loss: str) -> Tensor:
    """Labels as training takes them: int64 [n], or rows [n, classes], made distributions for a cross-entropy."""
    if labels.ndim == 1 or loss == "mse":
        return labels
    positive = labels.clamp(min=0)
    return positive / positive.sum(1, keepdim=True).clamp(min=1e-12)
