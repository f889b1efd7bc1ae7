"""Kernel ridge regression from a synthetic set to real images, and its slopes in the set (methods.md 9.1 and 9.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from esp.kernels import BIAS, RandomFeatures, ntk

Batch = tuple[Tensor, Tensor]
"""Images [m, c, h, w], and their label rows less their mean, float64 [m, classes]."""


class Batches(Protocol):
    """Real images in chunks, as often as they are asked; `entries` numbers in all label rows."""

    @property
    def entries(self) -> int:
        """Real images times classes."""

    def __iter__(self) -> Iterator[Batch]: ...


Slopes = tuple[Tensor, Tensor, Tensor]
"""A loss [], its slope in the synthetic images like them, and in their label rows [n, classes]."""


@dataclass(frozen=True, eq=False)
class Regression:
    """Predicts K_ts (K_ss + ridge mean(diag K_ss))^-1 y_s, in float64.

    Attributes:
        ridge: relative to the mean of the kernel's diagonal.
        depth: hidden layers of the exact fully connected NTK.
        features: random features whose kernel stands in its place; None for the NTK.
    """

    ridge: float
    depth: int = 1
    features: RandomFeatures | None = None

    @cached_property
    def kernel(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The kernel [n, m] of images [n, c, h, w] and [m, c, h, w]."""
        if self.features is not None:
            return self.features.kernel
        return lambda first, second: ntk(_flat(first), _flat(second), self.depth)

    def regular(self, kernel: Tensor) -> Tensor:
        """A kernel [n, n] with its ridge."""
        return kernel + self.ridge * kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)

    def weights(self, kernel: Tensor, rows: Tensor) -> Tensor:
        """(K + ridge)^-1 (rows - 1 / k), [n, k]; not a number where the kernel cannot be factorised."""
        factor, failed = torch.linalg.cholesky_ex(self.regular(kernel))
        weights = torch.cholesky_solve(rows - 1 / rows.shape[1], factor)
        return torch.where(failed == 0, weights, math.nan)

    def slopes(self, support: Tensor, rows: Tensor, batches: Batches) -> Slopes:
        """Half the mean square of what is predicted wrong, over all entries of all batches, and its slopes.

        Args:
            support: synthetic images [n, c, h, w].
            rows: their label rows [n, k], which sum to about 1.
            batches: real images in chunks; memory grows with the largest of them, not with their number.
        """
        rows = rows.detach().to(torch.float64).requires_grad_()
        through = self._through_kernel if self.features is None else self._through_features
        return through(support.detach(), rows, batches)

    def _through_kernel(self, support: Tensor, rows: Tensor, batches: Batches) -> Slopes:
        """With the exact kernel, which is differentiated itself."""
        support = support.to(torch.float64).requires_grad_()
        weights = self.weights(ntk(_flat(support), None, self.depth), rows)
        fixed = weights.detach().requires_grad_()
        total = support.new_zeros(())
        through, on_weights = torch.zeros_like(support), torch.zeros_like(fixed)
        for images, targets in batches:
            wrong = self.kernel(images, support) @ fixed - targets
            part = 0.5 * wrong.square().sum() / batches.entries
            slopes = torch.autograd.grad(part, (support, fixed))
            total, through, on_weights = total + part.detach(), through + slopes[0], on_weights + slopes[1]
        rest, on_rows = torch.autograd.grad(weights, (support, rows), on_weights)
        return total, through + rest, on_rows

    def _through_features(self, support: Tensor, rows: Tensor, batches: Batches) -> Slopes:
        """With random features: slopes reach the features in closed form, and the images through the networks.

        Features of the synthetic images are kept, [n, d] for each network; those of real images a chunk at a time.
        """
        features = self.features
        assert features is not None
        networks = range(len(features.thetas))
        kept = [features.of(number, support) for number in networks]
        kernel = (features.factor * torch.stack([part @ part.T for part in kept]).sum(0) + BIAS).requires_grad_()
        weights = self.weights(kernel, rows)
        fixed, total = weights.detach(), torch.zeros((), dtype=torch.float64, device=support.device)
        slopes, on_weights = [torch.zeros_like(part) for part in kept], torch.zeros_like(fixed)
        for images, targets in batches:
            seen = [features.of(number, images) for number in networks]
            across = sum((a @ b.T for a, b in zip(seen, kept, strict=True)), torch.zeros(()).to(fixed))
            wrong = (features.factor * across + BIAS) @ fixed - targets
            total, wrong = total + 0.5 * wrong.square().sum() / batches.entries, wrong / batches.entries
            on_weights += (features.factor * across + BIAS).T @ wrong
            slopes = [s + features.factor * fixed @ (wrong.T @ part) for s, part in zip(slopes, seen, strict=True)]
        on_kernel, on_rows = torch.autograd.grad(weights, (kernel, rows), on_weights)
        both = features.factor * (on_kernel + on_kernel.T)
        slopes = [slope + both @ part for slope, part in zip(slopes, kept, strict=True)]
        return total, features.pull(support, slopes), on_rows

    def normal_equations(self, support: Tensor, batches: Batches) -> tuple[Tensor, Tensor]:
        """A'A [n, n] and A'y [n, k] of A = K_ts (K_ss + ridge)^-1, predicting real images: label solve adds them."""
        inverse = torch.linalg.pinv(self.regular(self.kernel(support, support)), hermitian=True)
        gram, moment = torch.zeros_like(inverse), inverse.new_zeros(())
        for images, targets in batches:
            shares = self.kernel(images, support) @ inverse
            gram, moment = gram + shares.T @ shares, moment + shares.T @ targets
        return gram, moment


def _flat(images: Tensor) -> Tensor:
    """Images as float64 rows [n, d]."""
    return images.flatten(1).to(torch.float64)
