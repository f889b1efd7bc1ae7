"""Multi-formation: small images side by side in one stored image (IDC; Kim et al., ICML 2022; methods.md 12.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from esp.errors import InputError
from esp.optim import Tensors
from esp.parametrisation import Frame
from esp.rng import Key


@dataclass(frozen=True)
class MultiFormation:
    """Stored images `pixels` [classes * ipc, c, h, w], each cut into factor x factor parts that are enlarged.

    The parts are ceil(h / factor) x ceil(w / factor); where they reach over the border the image is padded with zeros,
    the data set's mean colour in normalised space, as everywhere else (IDC pads with 0.5 of raw space, about the same).
    A start from real images ("mix") shrinks a different one into each part by nearest neighbours. The images of a unit
    come in the order of its parts, row by row. A factor of 1 is pixels.
    """

    frame: Frame
    factor: int = 2
    stores_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        largest = min(self.frame.shape[1:])
        if not 1 <= self.factor <= largest:
            raise InputError(
                f"factor={self.factor} cannot cut images of {self.frame.shape[1]}x{self.frame.shape[2]} into parts",
                f"give a factor from 1 to {largest}",
            )

    @property
    def units(self) -> int:
        """Images stored for each class."""
        return self.frame.ipc

    @property
    def multiplicity(self) -> int:
        """Every part is an image."""
        return self.factor**2

    @property
    def stored(self) -> int:
        """The whole budget."""
        return self.frame.budget

    @property
    def part(self) -> tuple[int, int]:
        """Height and width of a part."""
        return -(-self.frame.shape[1] // self.factor), -(-self.frame.shape[2] // self.factor)

    def init(self, key: Key, real: Callable[[], Tensor] | None) -> Tensors:
        """Standard normal noise, or small real images in every part."""
        channels, height, width = self.frame.shape
        count, f = self.frame.classes * self.frame.ipc, self.factor
        if real is None:
            return {"pixels": torch.randn((count, *self.frame.shape), generator=key.generator())}
        small = F.interpolate(real(), size=self.part).reshape(count, f, f, channels, *self.part)
        whole = small.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, f * self.part[0], f * self.part[1])
        return {"pixels": whole[:, :, :height, :width].contiguous()}

    def decode(self, parameters: Tensors, first: int, last: int) -> Tensor:
        """Images [(last - first) * factor^2, c, h, w] of the stored images `first:last`."""
        channels, height, width = self.frame.shape
        f, (tall, wide) = self.factor, self.part
        stored = F.pad(parameters["pixels"][first:last], (0, f * wide - width, 0, f * tall - height))
        parts = stored.reshape(-1, channels, f, tall, f, wide).permute(0, 2, 4, 1, 3, 5)
        small = parts.reshape(-1, channels, tall, wide)
        return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
