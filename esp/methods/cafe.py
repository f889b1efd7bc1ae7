"""Condensation by aligning features (CAFE; Wang et al., CVPR 2022; methods.md 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._levels import align, require_levels
from esp.methods._matching import Rates, View
from esp.methods._options import require_options
from esp.parametrisation import decode_all
from esp.presets import loops
from esp.rng import Key
from esp.training import Recipe, Snapshot, accuracy

MILESTONES = (0.6, 0.8, 0.9)
"""Fractions of the steps after which the learning rate of pixels is halved: 1200, 1600 and 1800 of 2000."""


@dataclass(frozen=True)
class CAFE:
    """Align the class means of every level of a network, and let synthetic class centres classify real images.

    A step is a network: updates of the synthetic set, with training of the network on it in between, until the
    network's accuracy on real images has settled. The training between two updates ends when that accuracy moves. Both
    loops have a cap, which the released code has not, and their accuracies are true ones (there, earlier checks leak
    into later ones, so the published thresholds are only a guide).

    Attributes:
        steps: networks.
        outer, inner: caps on the updates with a network, and on the epochs between two of them; 0 for four times DC's.
        window: successive accuracies that are looked at.
        settled: the next network comes when they differ by less (lambda 1).
        moved: the training ends when they differ by more (lambda 2).
        early, late: weights of the alignment before the pooling of each block but the last, and of the last. The
            features after it weigh twice `late`: the published levels 4 and 5 are the same numbers.
        discrimination: weight of the cross-entropy, summed over real images, of features times class centres.
        real_batch, test_batch: real images per class in an update, and in a check of the accuracy.
        lr_network, batch: of the network's plain SGD on the synthetic set.
        lr_pixels, momentum: of SGD on pixels.
        lr_codes, lr_decoders: Adam's learning rates at the start, for latent sets; they fall linearly to zero.
        augmentation: DSA strategy (CAFE+DSA), or `none` (CAFE): siamese in an update, per image in the training.
        start: `noise`, `real`, or `auto`: real images where the parametrisation stores images.
    """

    steps: int = 2_000
    outer: int = 0
    inner: int = 0
    window: int = 10
    settled: float = 0.04
    moved: float = 0.03
    early: float = 0.1
    late: float = 1.0
    discrimination: float = 0.01
    real_batch: int = 256
    test_batch: int = 128
    lr_network: float = 0.01
    batch: int = 256
    lr_pixels: float = 0.1
    momentum: float = 0.5
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    augmentation: str = augment.STRATEGY
    start: Literal["auto", "real", "noise"] = "noise"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def _rates(self, task: Task) -> Rates:
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, self.lr_pixels, self.lr_codes, self.lr_decoders, self.momentum)

    def _caps(self, task: Task) -> tuple[int, int]:
        outer, inner = loops(task.parametrisation.frame.ipc)
        return self.outer or 4 * outer, self.inner or 4 * inner

    def _recipe(self, task: Task) -> Recipe:
        return Recipe(self._caps(task)[1], self.batch, self.lr_network, augmentation=self.augmentation)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and networks that do not show their levels."""
        task.operations(self.augmentation)
        require_options(self, task, start=("auto", "real", "noise"))
        if min(self.real_batch, self.test_batch, self.window) < 1 or min(self.outer, self.inner) < 0:
            raise InputError(
                "CAFE needs real_batch, test_batch and window of at least 1, and caps that are not negative",
                "correct the --set options",
            )
        self._recipe(task)
        require_levels("CAFE", task)

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set and its optimiser."""
        state = task.start(self.start, key)
        return {**state, **self._rates(task).start(synthetic_parameters(state)), "updates": state["step"].clone()}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """All updates with one network."""
        done, seen = int(state["step"]), list[float]()
        here = key.fold("step", done)
        theta = task.network.init(here.fold("network")).to(task.device)
        outer, metrics = self._caps(task)[0], Metrics()
        for number in range(outer):
            now = here.fold("update", number)
            state, metrics = self._update(task, state, theta, now)
            seen.append(self._accuracy(task, theta, now.fold("check")))
            if self._spread(seen) < self.settled:
                break
            if number + 1 < outer:
                theta = self._train(task, theta, state, now.fold("train"))
        counts = {"updates": torch.tensor(float(len(seen))), "accuracy": torch.tensor(seen[-1])}
        return {**state, "step": state["step"] + 1}, {**metrics, **counts}

    def _spread(self, seen: list[float]) -> float:
        """How far the last accuracies differ; infinity, which is settled by no bound, before the window is full."""
        last = seen[-self.window :]
        return max(last) - min(last) if len(last) == self.window else torch.inf

    def _update(self, task: Task, state: State, theta: Tensor, key: Key) -> tuple[State, Metrics]:
        """One update of the synthetic set. Adam counts updates, of which a step has several."""
        task = task.frozen(theta, key.fold("statistics"))
        operations, rates = task.operations(self.augmentation), self._rates(task)
        draw = augment.draw_single(operations, task.data.num_classes, key.fold("augment").generator())
        view = View(task, synthetic_parameters(state), draw)
        weights = (self.early, self.late, 2 * self.late, self.discrimination)
        losses, slopes = align(view, theta, weights, self.real_batch, key.fold("real"))
        done = int(state["step"]) / self.steps
        factor = 0.5 ** sum(done >= part for part in MILESTONES) if rates.optimiser == "sgd" else 1 - done
        after = rates.update({**state, "step": state["updates"]}, slopes, factor)
        return {**after, "step": state["step"], "updates": after["step"]}, losses

    def _accuracy(self, task: Task, theta: Tensor, key: Key) -> float:
        """Accuracy on fresh real images of every class."""
        task = task.frozen(theta, key.fold("statistics"))
        rows, labels = task.real_rows(list(range(task.data.num_classes)), self.test_batch, key)
        return accuracy(task.network, theta, rows, labels, task.images, task.chunk)

    def _train(self, task: Task, theta: Tensor, state: State, key: Key) -> Tensor:
        """The network's weights [p] after epochs on the synthetic set, until its accuracy moves."""
        images, seen = decode_all(task.parametrisation, synthetic_parameters(state)), list[float]()
        start = Snapshot(0, theta, torch.zeros_like(theta), None)
        for now in task.trainer(self._recipe(task)).epochs(start, images, task.labels, lambda batch: batch, key):
            theta = now.theta
            seen.append(self._accuracy(task, theta, key.fold("check", now.epoch)))
            if self.moved < self._spread(seen) < torch.inf:
                break
        return theta
