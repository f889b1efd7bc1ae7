"""First and mixed second derivatives of the loss on a synthetic set, exact in chunks.

Matching methods need d/dX of a function of G = d loss / d theta. With u = d(function)/dG held constant, that is
d/dX <G(X), u>: the vector u, pulled back through the gradient. G takes the work of three forward passes, pulling back
through it four more, and both are one program that a compiler sees whole. Differentiating the loss along u instead,
forwards and then in reverse, takes six passes without G; which is faster and leaner is measured by `make bench`. G is a
mean over samples, so a pass for G and one for d/dX, each over chunks, are exact at the memory of one chunk. They
compute the forward pass and part of the reverse one twice: nine passes, which are seven where the whole set is one
chunk whose activations may stay (`Derivatives.answered`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.func import grad, jvp, vjp

from esp.errors import InputError
from esp.networks.flat import Network
from esp.parts import is_part

LOSSES = ("ce", "bce", "mse")

Answer = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor, Any]]
"""From the gradient G [p] of a mean loss and class-mean features [classes, d] to the derivatives of an objective in
both, None where it does not depend on G, and to tensors that whoever asks wants to know."""


def loss_sum(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Sum over samples of the loss of logits [n, k] against targets [n, k] (rows that sum to 1).

    `ce` is the cross-entropy of the softmax, `bce` the binary cross-entropy of the logistic, summed over classes
    (eq. 4). `mse` is half the square, averaged over classes, of what separates the logits from the targets less
    their own mean 1 / k, as KIP trains networks (methods.md 9.3).
    """
    if loss == "ce":
        return -(targets * F.log_softmax(logits, 1)).sum()
    if loss == "mse":
        return 0.5 * (logits - targets + 1 / logits.shape[1]).square().sum() / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def loss_slope(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """d loss_sum / d logits [n, k] in closed form, so that it can be differentiated on any path."""
    if loss == "mse":
        return (logits - targets + 1 / logits.shape[1]) / logits.shape[1]
    return (logits.softmax(1) if loss == "ce" else logits.sigmoid()) - targets


class Derivatives:
    """The derivatives of one network, compiled once when asked.

    Args:
        network: the architecture, frozen where it has batch normalisation.
        loss: one of `LOSSES`, the loss whose parameter gradient is matched.
        compile: whether `torch.compile` fuses each derivative into one program.
    """

    def __init__(self, network: Network, loss: str = "ce", compile: bool = False) -> None:  # noqa: A002
        if loss not in LOSSES:
            raise InputError(f"unknown loss {loss!r}", f"choose one of {', '.join(LOSSES)}")
        self._programs, self._statistics = _Programs(network, loss, compile), network.frozen

    def frozen(self, network: Network) -> Derivatives:
        """The same programs through the statistics of `network`, which is the same architecture."""
        if network.frozen is self._statistics:
            return self
        other = copy.copy(self)
        other._statistics = network.frozen
        return other

    @is_part("network: features")
    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Features [n, d] of images [n, c, h, w] at theta [p]."""
        return self._programs.features(theta, self._statistics, images)

    @is_part("network: parameter gradient")
    def parameter_gradient(self, theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the loss sum [p] at theta [p], features [n, d], loss sum []; targets are [n, k]."""
        return self._programs.parameter_gradient(theta, self._statistics, images, targets)

    @is_part("network: mixed derivative")
    def mixed_pullback(
        self, theta: Tensor, direction: Tensor, images: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """d/dimages of <d loss sum/d theta, direction [p]> + <features, weights [n, d]>, like images."""
        return self._programs.mixed_pullback(theta, self._statistics, direction, images, targets, weights)

    @is_part("network: gradient and its pullback")
    def answered(self, theta: Tensor, images: Tensor, targets: Tensor, answer: Answer) -> tuple[Tensor, Any]:
        """d objective / d images, like images, of the objective that `answer` differentiates; and what else it returns.

        One program, in which the activations of all images stay until the answer is pulled back through them.

        Args:
            images: of all classes in turn, equally many of each.
            answer: it depends on the gradient.
        """
        slope, found = self._programs.answered(theta, self._statistics, images, targets, answer)
        return slope, found

    @is_part("network: adjoint")
    def adjoint(
        self, theta: Tensor, direction: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """<d loss sum/d theta, direction [p]> [], and its derivatives in theta [p] and in images, like them.

        The first is the Hessian times the direction: what backpropagating through a step of a student takes.
        """
        return self._programs.adjoint(theta, self._statistics, direction, images, targets)

    @is_part("network: feature pullback")
    def feature_pullback(self, theta: Tensor, images: Tensor, weights: Tensor) -> Tensor:
        """d/dimages of <features, weights [n, d]>, like images."""
        return self._programs.feature_pullback(theta, self._statistics, images, weights)


@dataclass(frozen=True, eq=False)
class _Programs:
    """What `Derivatives` calls. Statistics of batch normalisation are an input, so that new ones compile nothing."""

    network: Network
    loss: str
    compile: bool

    def _program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.network.compiled(function) if self.compile else function

    @cached_property
    def features(self) -> Callable[..., Tensor]:
        def features(theta: Tensor, statistics: Tensor | None, images: Tensor) -> Tensor:
            return self.network.at(theta, statistics, images)[0]

        return self._program(features)

    @cached_property
    def parameter_gradient(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        def parameter_gradient(
            theta: Tensor, statistics: Tensor | None, images: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            gradient, features, loss = self._gradient(theta, statistics, images, targets)
            return gradient, features.detach(), loss.detach()

        return self._program(parameter_gradient)

    def _gradient(
        self, theta: Tensor, statistics: Tensor | None, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the loss sum [p], features [n, d], loss sum []; differentiable."""

        def objective(theta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = self.network.at(theta, statistics, images)
            loss = loss_sum(logits, targets, self.loss)
            return loss, (features, loss)

        gradient, (features, loss) = grad(objective, has_aux=True)(theta)
        return gradient, features, loss

    @cached_property
    def mixed_pullback(self) -> Callable[..., Tensor]:
        def mixed_pullback(
            theta: Tensor,
            statistics: Tensor | None,
            direction: Tensor,
            images: Tensor,
            targets: Tensor,
            weights: Tensor,
        ) -> Tensor:
            pull = vjp(lambda x: self._gradient(theta, statistics, x, targets)[:2], images)[1]
            result: Tensor = pull((direction, weights))[0]
            return result

        return self._program(mixed_pullback)

    @cached_property
    def answered(self) -> Callable[..., tuple[Tensor, Any]]:
        def answered(
            theta: Tensor, statistics: Tensor | None, images: Tensor, targets: Tensor, answer: Answer
        ) -> tuple[Tensor, Any]:
            def look(images: Tensor) -> tuple[Tensor, Tensor]:
                gradient, features, _ = self._gradient(theta, statistics, images, targets)
                classes, count = targets.shape[1], len(images)
                return gradient / count, features.reshape(classes, count // classes, -1).mean(1)

            looked = vjp(look, images)
            direction, slope, found = answer(*looked[0])
            return looked[1]((direction, slope))[0], found

        return self._program(answered)

    @cached_property
    def adjoint(self) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        # The same numbers: the forward one is the faster where it is compiled, else the slower, with twice the memory.
        return self._program(self._adjoint_forward if self.compile else self._adjoint_backward)

    def _adjoint_backward(
        self, theta: Tensor, statistics: Tensor | None, direction: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = vjp(lambda t, x: self._gradient(t, statistics, x, targets)[0], theta, images)
        on_theta, on_images = found[1](direction)
        return found[0].detach() @ direction, on_theta, on_images

    def _adjoint_forward(
        self, theta: Tensor, statistics: Tensor | None, direction: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def along(theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            outputs = jvp(lambda t: self.network.at(t, statistics, images)[1], (theta,), (direction,))
            value: Tensor = (loss_slope(outputs[0], targets, self.loss) * outputs[1]).sum()
            return value, value

        (on_theta, on_images), value = grad(along, argnums=(0, 1), has_aux=True)(theta, images)
        return value.detach(), on_theta, on_images

    @cached_property
    def feature_pullback(self) -> Callable[..., Tensor]:
        def feature_pullback(theta: Tensor, statistics: Tensor | None, images: Tensor, weights: Tensor) -> Tensor:
            pull = vjp(lambda x: self.network.at(theta, statistics, x)[0], images)[1]
            result: Tensor = pull(weights)[0]
            return result

        return self._program(feature_pullback)
