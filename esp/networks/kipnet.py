"""The wide ConvNet that KIP scores with, and whose random features stand for its kernel (methods.md 9.3 and 9.4).

`front` convolutions 3x3 with ReLU, `depth` blocks of convolution 3x3, ReLU, average pooling 2x2, one linear layer; no
normalisation. Weights are drawn with variance 2 / fan-in, biases with deviation 0.1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from esp.errors import InputError

BIAS = 0.1


class KIPNet(nn.Module):
    """See the module: [n, c, h, w] to features [n, width * h/2^depth * w/2^depth] and logits [n, classes]."""

    def __init__(self, shape: tuple[int, int, int], classes: int, depth: int, width: int, front: int) -> None:
        super().__init__()
        channels, height, side = shape
        inputs = [channels] + [width] * (front + depth - 1)
        self.front = front
        self.convs = nn.ModuleList(nn.Conv2d(i, width, 3, padding=1) for i in inputs)
        self.head = nn.Linear(width * (height >> depth) * (side >> depth), classes)
        for layer in (*self.convs, self.head):
            _redraw(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised images."""
        for place, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            x = x if place < self.front else F.avg_pool2d(x, 2)
        features = x.flatten(1)
        return features, self.head(features)


def _redraw(layer: nn.Module) -> None:
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
    nn.init.normal_(layer.bias, std=BIAS)


def kipnet(
    shape: tuple[int, int, int], classes: int, depth: int = 3, width: int = 1_024, front: int = 1
) -> torch.nn.Module:
    """KIP's ConvNet for images of `shape`; `front=0` is its ConvNet3, and with `width=256` RFAD's.

    Raises:
        InputError: an option out of range, or images too small for `depth` poolings.
    """
    if depth < 1 or width < 1 or front < 0:
        raise InputError("a kipnet needs depth and width of at least 1", "give positive numbers")
    if min(shape[1:]) < 2**depth:
        raise InputError(
            f"images of {shape[1]}x{shape[2]} are too small for {depth} poolings",
            f"use a depth of at most {min(shape[1:]).bit_length() - 1}",
        )
    return KIPNet(shape, classes, depth, width, front)
