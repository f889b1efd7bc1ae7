"""First and mixed second derivatives of the loss on a synthetic set, exact in chunks.

Matching methods need d/dX of a function of G = d loss / d theta. With u = d(function)/dG held constant, that is
d/dX <G(X), u>: the derivative of the loss along u in theta, differentiated once in reverse. **Reverse over forward**
costs about as much as a plain step and a half, where backpropagating through a backward pass costs three to five. G is
a mean over samples, so a pass for G and a pass for d/dX, each over chunks, give the exact gradient at the memory of one
chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.func import grad, jvp, vjp

from esp.errors import InputError
from esp.networks.flat import Network

LOSSES = ("ce", "bce")


def loss_sum(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Sum over samples of the loss of logits [n, k] against targets [n, k] (rows that sum to 1).

    `ce` is the cross-entropy of the softmax, `bce` the binary cross-entropy of the logistic, summed over classes
    (eq. 4).
    """
    if loss == "ce":
        return -(targets * F.log_softmax(logits, 1)).sum()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def loss_slope(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """d loss_sum / d logits [n, k] in closed form, so that it can be differentiated on any path."""
    return (logits.softmax(1) if loss == "ce" else logits.sigmoid()) - targets


class Derivatives:
    """The derivatives of one network, compiled once when asked.

    Args:
        network: the architecture.
        loss: `ce` or `bce`, the loss whose parameter gradient is matched.
        compile: whether `torch.compile` fuses each derivative into one program.
    """

    def __init__(self, network: Network, loss: str = "ce", compile: bool = False) -> None:  # noqa: A002
        if loss not in LOSSES:
            raise InputError(f"unknown loss {loss!r}", f"choose one of {', '.join(LOSSES)}")
        self._network, self._loss, self._compile = network, loss, compile

    def _program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False) if self._compile else function

    @cached_property
    def features(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(theta [p], images [n, c, h, w]) -> features [n, d]."""

        def features(theta: Tensor, images: Tensor) -> Tensor:
            return self._network(theta, images)[0]

        return self._program(features)

    @cached_property
    def parameter_gradient(self) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """(theta [p], images, targets [n, k]) -> gradient of the loss sum [p], features [n, d], loss sum []."""

        def objective(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = self._network(theta, images)
            loss = loss_sum(logits, targets, self._loss)
            return loss, (features, loss)

        def parameter_gradient(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gradient, (features, loss) = grad(objective, has_aux=True)(theta, images, targets)
            return gradient, features.detach(), loss.detach()

        return self._program(parameter_gradient)

    @cached_property
    def mixed_pullback(self) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        """(theta [p], u [p], images, targets, v [n, d]) -> d/dimages of <d loss sum/d theta, u> + <features, v>."""

        def scalar(images: Tensor, theta: Tensor, direction: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            outputs = jvp(lambda t: self._network(t, images), (theta,), (direction,))
            (features, logits), (_, tangent) = outputs[0], outputs[1]
            along: Tensor = (loss_slope(logits, targets, self._loss) * tangent).sum()
            pulled: Tensor = (features * weights).sum()
            return along + pulled

        def mixed_pullback(
            theta: Tensor, direction: Tensor, images: Tensor, targets: Tensor, weights: Tensor
        ) -> Tensor:
            result: Tensor = grad(scalar)(images, theta, direction, targets, weights)
            return result

        return self._program(mixed_pullback)

    @cached_property
    def feature_pullback(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(theta [p], images, v [n, d]) -> d/dimages of <features, v>, like images."""

        def feature_pullback(theta: Tensor, images: Tensor, weights: Tensor) -> Tensor:
            pull = vjp(lambda x: self._network(theta, x)[0], images)[1]
            result: Tensor = pull(weights)[0]
            return result

        return self._program(feature_pullback)
