"""ConvNet, the network that condensation papers share (Gidaris and Komodakis, 2018; methods.md 2.1).

`depth` blocks of convolution 3x3, normalisation, ReLU, average pooling 2x2, then one linear layer.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the field's own abbreviation)
from torch import Tensor, nn

from esp.errors import InputError
from esp.networks.norms import norm as make_norm


class ConvNet(nn.Module):
    """See the module: [n, c, h, w] to features [n, width * h/2^depth * w/2^depth] and logits [n, classes]."""

    def __init__(self, shape: tuple[int, int, int], classes: int, depth: int, width: int, norm: str) -> None:
        super().__init__()
        channels, height, side = shape
        # MNIST's 28 pixels become 32 by padding, as in the released code of DC, DSA and DM.
        padding = 3 if (height, side) == (28, 28) else 1
        height, side = (height + 2 * padding - 2) >> depth, (side + 2 * padding - 2) >> depth
        inputs = [channels] + [width] * (depth - 1)
        pads = [padding] + [1] * (depth - 1)
        self.convs = nn.ModuleList(nn.Conv2d(i, width, 3, padding=p) for i, p in zip(inputs, pads, strict=True))
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in range(depth))
        self.head = nn.Linear(width * height * side, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised images."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2)
        features = x.flatten(1)
        return features, self.head(features)

    def levels(self, x: Tensor) -> list[Tensor]:
        """What each block gives before its pooling, [n, width, h, w], and last the features [n, d]."""
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            found.append(F.relu(norm(conv(x))))
            x = F.avg_pool2d(found[-1], 2)
        return [*found, x.flatten(1)]


def convnet(
    shape: tuple[int, int, int], classes: int, depth: int = 3, width: int = 128, norm: str = "instance"
) -> nn.Module:
    """A ConvNet for images of `shape` (channels, height, width).

    Raises:
        InputError: an option out of range, or images too small for `depth` poolings.
    """
    if depth < 1 or width < 1:
        raise InputError("a ConvNet needs depth and width of at least 1", "give positive numbers")
    if min(shape[1:]) < 2**depth:
        raise InputError(
            f"images of {shape[1]}x{shape[2]} are too small for {depth} poolings",
            f"use a depth of at most {min(shape[1:]).bit_length() - 1}",
        )
    return ConvNet(shape, classes, depth, width, norm)


def convnet3(shape: tuple[int, int, int], classes: int, width: int = 128, norm: str = "instance") -> nn.Module:
    """ConvNet of depth 3, for 32x32 images: 320,010 parameters on CIFAR-10."""
    return convnet(shape, classes, 3, width, norm)


def convnet4(shape: tuple[int, int, int], classes: int, width: int = 128, norm: str = "instance") -> nn.Module:
    """ConvNet of depth 4, for 64x64 images: 857,160 parameters on TinyImageNet."""
    return convnet(shape, classes, 4, width, norm)
