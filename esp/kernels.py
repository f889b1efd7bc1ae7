"""Kernels of infinitely wide networks: the exact fully connected NTK, and a convolutional NNGP by random features."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from esp.derivatives import Derivatives
from esp.networks.flat import Network, build
from esp.rng import Key

WEIGHT, BIAS = 2.0, 0.01
"""Variances of weights and biases of the network behind a kernel."""


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


@dataclass(frozen=True, eq=False)
class RandomFeatures:
    """Features of networks at random weights, whose inner products approach a convolutional NNGP kernel (RFAD).

    The kernel of images x and y is 2 <f(x), f(y)> / d + 0.01, averaged over the networks: that of one more linear layer
    on top. It is exact in expectation; its deviation falls with the square root of networks x features.

    Attributes:
        network: `kipnet` without a front: `depth` blocks of convolution, ReLU and average pooling.
        thetas: weights [p] of every network.
        chunk: images per pass.
        compile: whether passes are compiled.
    """

    network: Network
    thetas: tuple[Tensor, ...]
    chunk: int
    compile: bool = False

    @property
    def factor(self) -> float:
        """What the sum of inner products over all networks is multiplied by."""
        return WEIGHT / (self.network.features * len(self.thetas))

    def of(self, number: int, images: Tensor) -> Tensor:
        """Features [n, d] in float64 of one network, without a graph."""
        program, theta = _derivatives(self.network.spec, self.network.shape, self.network.classes, self.compile), None
        theta = self.thetas[number]
        with torch.no_grad():
            parts = [program.features(theta, part) for part in torch.split(images, self.chunk)]
        return torch.cat(parts).to(torch.float64)

    def kernel(self, first: Tensor, second: Tensor) -> Tensor:
        """[n, m] in float64, of images [n, c, h, w] and [m, c, h, w]; one network's features at a time."""
        total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
        for number in range(len(self.thetas)):
            total += self.of(number, first) @ self.of(number, second).T
        return self.factor * total + BIAS

    def pull(self, images: Tensor, slopes: list[Tensor]) -> Tensor:
        """Slope in the images, like them, from those in the features of every network [n, d]."""
        program = _derivatives(self.network.spec, self.network.shape, self.network.classes, self.compile)
        total = torch.zeros_like(images)
        for theta, slope in zip(self.thetas, slopes, strict=True):
            parts = zip(torch.split(images, self.chunk), torch.split(slope.to(images), self.chunk), strict=True)
            total += torch.cat([program.feature_pullback(theta, x, s) for x, s in parts])
        return total


def random_features(
    shape: tuple[int, int, int],
    depth: int,
    width: int,
    networks: int,
    key: Key,
    device: torch.device,
    chunk: int,
    compile: bool,  # noqa: A002
) -> RandomFeatures:
    """Networks drawn by `key` for images of `shape`.

    Raises:
        InputError: the images are too small for `depth` poolings.
    """
    network = build(f"kipnet,front=0,depth={depth},width={width}", shape, 1)
    thetas = tuple(network.init(key.fold("features", number)).to(device) for number in range(networks))
    return RandomFeatures(network, thetas, chunk, compile)


@functools.cache
def _derivatives(spec: str, shape: tuple[int, int, int], classes: int, compile: bool) -> Derivatives:  # noqa: A002
    """Programs are compiled once for all draws of weights."""
    return Derivatives(build(spec, shape, classes), compile=compile)
