"""Densely connected networks for small images (Huang et al., CVPR 2017; methods.md 2.2).

Blocks of 6, 12, 24 and 16 layers with bottlenecks of four times the growth; a stem 3x3 of twice the growth without
pooling; transitions that halve channels and size; global average pooling, one linear layer. torch's own initialisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from esp.errors import InputError
from esp.networks.norms import norm as make_norm

BLOCKS = (6, 12, 24, 16)


class Layer(nn.Module):
    """A bottleneck whose output is put beside its input: [n, inputs, h, w] to [n, inputs + growth, h, w]."""

    def __init__(self, inputs: int, growth: int, norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = make_norm(norm, 4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        inner = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([self.conv2(F.relu(self.norm2(inner))), x], 1)


class Transition(nn.Module):
    """Fewer channels, half the size: [n, inputs, h, w] to [n, outputs, h/2, w/2]."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.norm = make_norm(norm, inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """See the module: [n, c, h, w] to features [n, d] and logits [n, classes]; d is 1024 at growth 32."""

    def __init__(self, channels: int, classes: int, growth: int, norm: str) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for count in BLOCKS:
            self.blocks.append(nn.Sequential(*(Layer(width + i * growth, growth, norm) for i in range(count))))
            width += count * growth
            if len(self.blocks) < len(BLOCKS):
                self.transitions.append(Transition(width, width // 2, norm))
                width //= 2
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised images."""
        features = self.levels(x)[-1]
        return features, self.head(features)

    def levels(self, x: Tensor) -> list[Tensor]:
        """What each block gives, the last one normalised and rectified, and last the features [n, d]."""
        found = [self.blocks[0](self.stem(x))]
        for transition, block in zip(self.transitions, list(self.blocks)[1:], strict=True):
            found.append(block(transition(found[-1])))
        last = F.relu(self.norm(found[-1]))
        return [*found[:-1], last, last.mean((2, 3))]


def densenet121(shape: tuple[int, int, int], classes: int, growth: int = 32, norm: str = "batch") -> nn.Module:
    """DenseNet of 121 layers: 6,956,298 parameters on CIFAR-10.

    Raises:
        InputError: an option out of range, or images too small for three halvings.
    """
    if growth < 1:
        raise InputError("a DenseNet needs a growth of at least 1", "give a positive number")
    least = 16 if norm == "instance" else 8  # instance normalisation leaves nothing of a single pixel
    if min(shape[1:]) < least:
        raise InputError(
            f"images of {shape[1]}x{shape[2]} are too small for a DenseNet with norm={norm}",
            f"use images of at least {least}x{least}, or another network",
        )
    return DenseNet(shape[0], classes, growth, norm)


def densenetidc(shape: tuple[int, int, int], classes: int, growth: int = 12, norm: str = "batch") -> nn.Module:
    """DenseNet-121 of growth 12, on which IDC's code tests CIFAR-10: 1,000,618 parameters there."""
    return densenet121(shape, classes, growth, norm)
