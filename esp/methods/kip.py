"""Kernel inducing points (KIP; Nguyen, Chen and Lee, ICLR 2021) by an exact kernel or RFAD's; methods.md 9.

RFAD: Loo et al., "Efficient Dataset Distillation using Random Feature Approximation", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp.core import Metrics, State, Task, learned, synthetic_parameters
from esp.errors import InputError
from esp.kernels import random_features
from esp.methods._matching import Rates, View
from esp.methods._options import require_options
from esp.optim import Tensors, adam, below, prefixed, start_adam
from esp.parametrisation import decode_all
from esp.regression import Batch, Regression
from esp.rng import Key

LARGEST = 10_000
"""Synthetic images at most: the kernel of so many takes 800 MB, its factorisation minutes."""


@dataclass(frozen=True)
class KIP:
    """Lower the error of kernel ridge regression from the synthetic set to real images; no network is trained.

    Labels are one-hot rows less their mean, of real images always, of synthetic ones unless they are learned. Kernel
    and solve are in float64. `accuracy` tests the kernel predictor itself, as the paper does.

    Attributes:
        steps: updates; 300 make a usable set.
        kernel: `fc`, the exact NTK of a fully connected network; or `conv`, RFAD's approximate NNGP of a convolutional
            one, whose networks are drawn anew at every step.
        depth: hidden layers of the infinitely wide ReLU network of `fc`.
        ridge: regularisation, relative to the mean of the kernel's diagonal; of `fc`.
        conv_ridge, conv_depth, conv_width, conv_networks: of `conv`; RFAD's, which takes lr_pixels=1e-3 with AdaBelief.
        labels: `fixed`; `learned` along with the images; or `solved`: images stay what they are, and the rows are the
            least-squares solution over all real images seen so far (label solve). Rows count as stored numbers.
        targets: real images in all for every update, as many of each class.
        lr_pixels, lr_labels, lr_codes, lr_decoders: Adam's learning rates, constant.
        start: `noise`, `real`, or `auto`: real images where the parametrisation stores images.
    """

    steps: int = 1_000
    kernel: Literal["fc", "conv"] = "fc"
    depth: int = 1
    ridge: float = 1e-6
    conv_ridge: float = 5e-3
    conv_depth: int = 3
    conv_width: int = 256
    conv_networks: int = 8
    labels: Literal["fixed", "learned", "solved"] = "fixed"
    targets: int = 5_000
    lr_pixels: float = 0.04
    lr_labels: float = 0.04
    lr_codes: float = 0.04
    lr_decoders: float = 0.01
    start: Literal["auto", "real", "noise"] = "auto"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    @property
    def _rates(self) -> Rates:
        return Rates("adam", self.lr_pixels, self.lr_codes, self.lr_decoders)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and sets too large for one kernel."""
        kinds = {"kernel": ("fc", "conv"), "labels": ("fixed", "learned", "solved")}
        require_options(self, task, start=("auto", "real", "noise"), **kinds)
        least = min(self.depth, self.targets, self.conv_depth, self.conv_width, self.conv_networks)
        if least < 1 or min(self.ridge, self.conv_ridge) < 0:
            raise InputError(
                "KIP needs depth and targets of at least 1 and a ridge that is not negative",
                "correct the --set options",
            )
        if self.kernel == "conv":
            self._regression(task, Key(0))
        if len(task.labels) > LARGEST:
            raise InputError(
                f"KIP solves for all synthetic images at once, and {len(task.labels)} are more than {LARGEST}",
                "give fewer images per class, or use --parametrisation pixels",
            )

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set, its labels where they change, and its optimiser."""
        state = task.start(self.start, key)
        state |= self._rates.start(synthetic_parameters(state))
        if self.labels == "fixed":
            return state
        rows = one_hot(task, task.labels).to(torch.float32)
        if self.labels == "learned":
            return {**state, "learned.labels": rows, **prefixed("teacher", start_adam({"labels": rows}))}
        moment = torch.zeros_like(rows, dtype=torch.float64)
        return {**state, "learned.labels": rows, "gram": moment.new_zeros(len(rows), len(rows)), "moment": moment}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One update against fresh real images."""
        classes, done = task.data.num_classes, int(state["step"])
        count, here = max(1, self.targets // classes), key.fold("step", done)
        images, labels = task.real_rows(list(range(classes)), count, here)
        if self.labels == "solved":
            return self._solve_step(task, state, images, labels, here)
        rows = learned(state).get("labels")
        loss, slopes = self.loss(task, synthetic_parameters(state), images, labels, rows, here)
        on_rows = slopes.pop("labels")
        state = self._rates.update(state, slopes, 1.0)
        if rows is None:
            return state, {"loss": loss}
        rates = {"labels": self.lr_labels}
        new, memory = adam({"labels": rows}, {"labels": on_rows.to(rows)}, below("teacher", state), rates, done)
        return {**state, **prefixed("learned", new), **prefixed("teacher", memory)}, {"loss": loss}

    def _solve_step(self, task: Task, state: State, images: Tensor, labels: Tensor, key: Key) -> tuple[State, Metrics]:
        """Add real images to the normal equations of the label rows, and solve them."""
        support, batches = decode_all(task.parametrisation, synthetic_parameters(state)), _Targets(task, images, labels)
        regression = self._regression(task, key)
        gram, moment = regression.normal_equations(support, batches)
        gram, moment = state["gram"] + gram, state["moment"] + moment
        rows = torch.linalg.pinv(gram, hermitian=True) @ moment + 1 / moment.shape[1]
        with torch.no_grad():
            weights = regression.weights(regression.kernel(support, support), rows)
            square = [(regression.kernel(x, support) @ weights - y).square().sum() for x, y in batches]
        loss = 0.5 * torch.stack(square).sum() / (len(images) * rows.shape[1])
        new = {"gram": gram, "moment": moment, "learned.labels": rows.to(torch.float32)}
        return {**state, **new, "step": state["step"] + 1}, {"loss": loss}

    def loss(
        self,
        task: Task,
        parameters: Tensors,
        images: Tensor,
        labels: Tensor,
        rows: Tensor | None = None,
        key: Key = Key(0),  # noqa: B008 (immutable)
    ) -> tuple[Tensor, Tensors]:
        """Half the mean square of what the predictor gets wrong, over all entries, and its slopes.

        Args:
            task: what the set is for; `chunk` bounds the images at a time.
            parameters: of the synthetic set.
            images: normalised target images [m, c, h, w], or their row numbers [m], read a chunk at a time.
            labels: their classes [m].
            rows: label rows [n, classes] of the synthetic set; None for one-hot ones.
            key: names the networks of `conv`.

        Returns:
            The loss [], and slopes in every parameter and, as `labels`, in the rows.
        """
        decoded = decode_all(task.parametrisation, parameters)
        rows = one_hot(task, task.labels) if rows is None else rows
        value, on_images, on_rows = self._regression(task, key).slopes(decoded, rows, _Targets(task, images, labels))
        slopes = View(task, parameters, ()).pull(lambda images, places: on_images[places].to(images))
        return value, {**slopes, "labels": on_rows}

    def accuracy(
        self,
        task: Task,
        parameters: Tensors,
        rows: Tensor | None = None,
        key: Key = Key(0),  # noqa: B008 (immutable)
    ) -> float:
        """Fraction of the test images that the kernel predictor of a set gets right; arguments as in `loss`."""
        right, data, regression = 0, task.data, self._regression(task, key.fold("test"))
        rows = one_hot(task, task.labels) if rows is None else rows
        with torch.no_grad():
            support = decode_all(task.parametrisation, parameters)
            weights = regression.weights(regression.kernel(support, support), rows.to(torch.float64))
            for x, y in zip(
                torch.split(data.test_images, task.chunk), torch.split(data.test_labels, task.chunk), strict=True
            ):
                guesses = (regression.kernel(data.normalise(x.to(task.device)), support) @ weights).argmax(1)
                right += int((guesses == y.to(guesses.device)).sum())
        return right / len(data.test_labels)

    def _regression(self, task: Task, key: Key) -> Regression:
        if self.kernel == "fc":
            return Regression(self.ridge, self.depth)
        size = self.conv_depth, self.conv_width, self.conv_networks
        features = random_features(task.data.shape, *size, key, task.device, task.chunk, task.compile)
        return Regression(self.conv_ridge, features=features)


@dataclass(frozen=True)
class _Targets:
    """Real images and their label rows less 1 / classes, a chunk at a time and anew each time that they are asked."""

    task: Task
    images: Tensor
    labels: Tensor

    @property
    def entries(self) -> int:
        return len(self.labels) * self.task.data.num_classes

    def __iter__(self) -> Iterator[Batch]:
        parts = zip(*(torch.split(part, self.task.chunk) for part in (self.images, self.labels)), strict=True)
        for images, labels in parts:
            x = self.task.images(images) if images.ndim == 1 else images
            yield x, one_hot(self.task, labels) - 1 / self.task.data.num_classes


def one_hot(task: Task, labels: Tensor) -> Tensor:
    """float64 [n, classes] on the device."""
    return torch.nn.functional.one_hot(labels.to(task.device), task.data.num_classes).to(torch.float64)
