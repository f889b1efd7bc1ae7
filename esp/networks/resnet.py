"""Residual networks for small images (He et al., CVPR 2016; methods.md 2.2): a stem of 3x3 without pooling.

Four stages of widths w, 2w, 4w, 8w at strides 1, 2, 2, 2; basic blocks, projections where the shape changes, global
average pooling, one linear layer. Convolutions are drawn from N(0, 2 / (k k outputs)), as in the code of IDC.
"""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from esp.errors import InputError
from esp.networks.norms import norm as make_norm


class Block(nn.Module):
    """Two convolutions 3x3 beside a shortcut: [n, inputs, h, w] to [n, outputs, h/stride, w/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, make_norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """See the module: [n, c, h, w] to features [n, 8 width] and logits [n, classes]."""

    def __init__(self, channels: int, classes: int, blocks: tuple[int, ...], width: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = make_norm(norm, width)
        widths = [width * 2**stage for stage in range(len(blocks))]
        stages, inputs = [], width
        for stage, (count, outputs) in enumerate(zip(blocks, widths, strict=True)):
            first = Block(inputs, outputs, 2 if stage else 1, norm)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1, norm) for _ in range(count - 1))))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(inputs, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0, math.sqrt(2 / (layer.weight[0, 0].numel() * layer.out_channels)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised images."""
        features = self.levels(x)[-1]
        return features, self.head(features)

    def levels(self, x: Tensor) -> list[Tensor]:
        """What each stage gives, [n, width 2^s, h/2^s, w/2^s], and last the features [n, d]."""
        found = [F.relu(self.norm(self.stem(x)))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return [*found[1:], found[-1].mean((2, 3))]


def resnet10(shape: tuple[int, int, int], classes: int, width: int = 64, norm: str = "batch") -> nn.Module:
    """ResNet of one block per stage: 4,903,242 parameters on CIFAR-10."""
    return _resnet(shape, classes, (1, 1, 1, 1), width, norm)


def resnet10idc(shape: tuple[int, int, int], classes: int, width: int = 32, norm: str = "batch") -> nn.Module:
    """ResNet-10 of half the width, on which IDC's code tests CIFAR-10: 1,228,970 parameters there."""
    return _resnet(shape, classes, (1, 1, 1, 1), width, norm)


def resnet18(shape: tuple[int, int, int], classes: int, width: int = 64, norm: str = "batch") -> nn.Module:
    """ResNet of two blocks per stage: 11,173,962 parameters on CIFAR-10."""
    return _resnet(shape, classes, (2, 2, 2, 2), width, norm)


def _resnet(shape: tuple[int, int, int], classes: int, blocks: tuple[int, ...], width: int, norm: str) -> nn.Module:
    if width < 1:
        raise InputError("a ResNet needs a width of at least 1", "give a positive number")
    if norm == "instance" and min(shape[1:]) <= 8:
        raise InputError(
            f"images of {shape[1]}x{shape[2]} shrink to one pixel in a ResNet, where instance normalisation leaves "
            "nothing of them",
            "use norm=batch, or images of at least 9x9",
        )
    return ResNet(shape[0], classes, blocks, width, norm)
