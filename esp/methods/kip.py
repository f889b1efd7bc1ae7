"""Kernel inducing points (KIP; Nguyen, Chen and Lee, ICLR 2021) with the exact fully connected NTK; methods.md 9."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Rates, require_choices
from esp.optim import Tensors
from esp.rng import Key

WEIGHT, BIAS = 2.0, 0.01
"""Variances of weights and biases of the network behind the kernel."""

LARGEST = 10_000
"""Synthetic images at most: the kernel of so many takes 800 MB, its factorisation minutes."""


@dataclass(frozen=True)
class KIP:
    """Lower the error of kernel ridge regression from the synthetic set to real images; no network is trained.

    Labels are one-hot rows less their mean, of synthetic images too: they are not learned. Kernel and solve are in
    float64. `accuracy` tests the kernel predictor itself, as the paper does.

    Attributes:
        steps: updates; 300 make a usable set.
        depth: hidden layers of the infinitely wide ReLU network.
        ridge: regularisation, relative to the mean of the kernel's diagonal.
        targets: real images in all for every update, as many of each class.
        lr_pixels, lr_codes, lr_decoders: Adam's learning rates, constant.
        start: `noise`, `real`, or `auto`: real images where the parametrisation stores images.
    """

    steps: int = 1_000
    depth: int = 1
    ridge: float = 1e-6
    targets: int = 5_000
    lr_pixels: float = 0.04
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
        require_choices(self, start=("auto", "real", "noise"))
        if min(self.depth, self.targets) < 1 or self.ridge < 0:
            raise InputError(
                "KIP needs depth and targets of at least 1 and a ridge that is not negative",
                "correct the --set options",
            )
        if len(task.labels) > LARGEST:
            raise InputError(
                f"KIP solves for all synthetic images at once, and {len(task.labels)} are more than {LARGEST}",
                "give fewer images per class, or use --parametrisation pixels",
            )

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set and its optimiser."""
        state = task.start(self.start, key)
        return {**state, **self._rates.start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One update against fresh real images."""
        count = max(1, self.targets // task.data.num_classes)
        images, labels = task.real(list(range(task.data.num_classes)), count, key.fold("step", int(state["step"])))
        loss, slopes = self.loss(task, synthetic_parameters(state), images, labels)
        return self._rates.update(state, slopes, 1.0), {"loss": loss}

    def loss(self, task: Task, parameters: Tensors, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensors]:
        """Half the mean square of what the predictor gets wrong, over all entries, and its slopes in the parameters.

        Args:
            task: what the set is for; `chunk` bounds the target images at a time.
            parameters: of the synthetic set.
            images: normalised target images [m, c, h, w].
            labels: their classes [m].
        """
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        decoded = _support(task, leaves)
        support = decoded.detach().requires_grad_()
        weights = self._weights(task, support)
        fixed = weights.detach().requires_grad_()
        total = support.new_zeros(())
        through, on_weights = torch.zeros_like(support), torch.zeros_like(fixed)
        for x, y in zip(torch.split(images, task.chunk), torch.split(labels, task.chunk), strict=True):
            wrong = ntk(_flat(x), support, self.depth) @ fixed - _centred(task, y)
            part = 0.5 * wrong.square().sum() / (len(labels) * task.data.num_classes)
            slopes = torch.autograd.grad(part, (support, fixed))
            total, through, on_weights = total + part.detach(), through + slopes[0], on_weights + slopes[1]
        (rest,) = torch.autograd.grad(weights, support, on_weights)
        found = torch.autograd.grad(decoded, list(leaves.values()), through + rest)
        return total, dict(zip(leaves, found, strict=True))

    def accuracy(self, task: Task, parameters: Tensors) -> float:
        """Fraction of the test images that the kernel predictor of a synthetic set gets right."""
        right, data = 0, task.data
        with torch.no_grad():
            support = _support(task, parameters)
            weights = self._weights(task, support)
            for x, y in zip(
                torch.split(data.test_images, task.chunk), torch.split(data.test_labels, task.chunk), strict=True
            ):
                images = _flat(data.normalise(x.to(task.device)))
                guesses = (ntk(images, support, self.depth) @ weights).argmax(1)
                right += int((guesses == y.to(guesses.device)).sum())
        return right / len(data.test_labels)

    def _weights(self, task: Task, support: Tensor) -> Tensor:
        """(K + ridge)^-1 y, [n, classes]; not a number where the kernel of the support cannot be factorised."""
        kernel = ntk(support, None, self.depth)
        ridge = self.ridge * kernel.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(kernel + ridge * torch.eye(len(kernel)).to(kernel))
        weights = torch.cholesky_solve(_centred(task, task.labels), factor)
        return torch.where(failed == 0, weights, math.nan)


def ntk(first: Tensor, second: Tensor | None = None, depth: int = 1) -> Tensor:
    """Neural tangent kernel of an infinitely wide fully connected ReLU network with `depth` hidden layers.

    Args:
        first: inputs [n, d].
        second: inputs [m, d]; None for the first ones.
        depth: hidden layers.

    Returns:
        [n, m].
    """
    other = first if second is None else second
    own, others = (BIAS + WEIGHT * x.square().mean(1) for x in (first, other))
    nngp = BIAS + WEIGHT * first @ other.T / first.shape[1]
    tangent = nngp
    for _ in range(depth):
        scale = (own[:, None] * others).sqrt()
        ratio = nngp / scale
        # The slope of arccos is infinite at 1, where every input meets itself and nothing depends on it.
        apart = ratio < 1 - 1e-12
        angle = torch.where(apart, torch.where(apart, ratio, 0.0).clamp(min=-1 + 1e-12).arccos(), 0.0)
        tangent = tangent * WEIGHT * (math.pi - angle) / (2 * math.pi)
        nngp = BIAS + WEIGHT * scale * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
        tangent = nngp + tangent
        own, others = BIAS + WEIGHT * own / 2, BIAS + WEIGHT * others / 2
    return tangent


def _flat(images: Tensor) -> Tensor:
    """Images as float64 rows [n, d]."""
    return images.flatten(1).to(torch.float64)


def _support(task: Task, parameters: Tensors) -> Tensor:
    made = task.parametrisation
    return _flat(made.decode(parameters, 0, made.frame.classes * made.units))


def _centred(task: Task, labels: Tensor) -> Tensor:
    """One-hot labels less 1 / classes, float64 [n, classes] on the device."""
    classes = task.data.num_classes
    return torch.nn.functional.one_hot(labels.to(task.device), classes).to(torch.float64) - 1 / classes
