"""EfficientNetV2-S of torchvision (Tan and Le, ICML 2021; methods.md 2.2), without pretrained weights.

Two things of it are not as in its paper, because a network here is a function of weights and images: dropout (0.2) and
stochastic depth (up to 0.2) are off, in training too (see `esp.networks.norms.pure`).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from esp.errors import InputError
from esp.vision import torchvision


class EfficientNet(nn.Module):
    """[n, c, h, w] to features [n, 1280] and logits [n, classes]; images are resized first where `resize` is set."""

    def __init__(self, channels: int, classes: int, resize: int) -> None:
        super().__init__()
        self.resize = resize
        self.net: Any = torchvision().models.efficientnet_v2_s(weights=None, num_classes=classes)
        stem = self.net.features[0][0]
        if channels != stem.in_channels:
            stem = nn.Conv2d(channels, stem.out_channels, 3, 2, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out")
            self.net.features[0][0] = stem
        for layer in self.net.modules():
            if hasattr(layer, "inplace"):
                layer.inplace = False  # activations are differentiated forwards and backwards

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of normalised images."""
        features = self.levels(x)[-1]
        return features, self.net.classifier(features)

    def levels(self, x: Tensor) -> list[Tensor]:
        """What each of the stages and the last convolution give, and last the features [n, d]."""
        if self.resize:
            x = F.interpolate(x, size=(self.resize, self.resize), mode="bilinear", align_corners=False)
        found = [self.net.features[0](x)]
        for stage in self.net.features[1:]:
            found.append(stage(found[-1]))
        return [*found[1:], found[-1].mean((2, 3))]


def efficientnetv2s(shape: tuple[int, int, int], classes: int, resize: int = 0) -> nn.Module:
    """EfficientNetV2-S: 20,190,298 parameters on CIFAR-10; resize=N makes images NxN first (torchvision tests at 384).

    Images shrink to a 32nd: at 32x32 one pixel is left in the end, and a norm there sees one value per image.

    Raises:
        InputError: `resize` makes images smaller than 32x32.
    """
    if resize and resize < 32:
        raise InputError(f"resize={resize} leaves EfficientNetV2-S nothing to see", "give 32 or more, or 0 for as is")
    return EfficientNet(shape[0], classes, resize)
