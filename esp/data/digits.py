"""The handwritten digits of the UCI repository, small enough to come with the library.

`digits.npz` holds the 1,797 images [8, 8] of values 0 to 16 that scikit-learn distributes (E. Alpaydin and C. Kaynak,
Optical Recognition of Handwritten Digits, 1998, CC BY 4.0), in their order. They are doubled to 16x16, so that three
poolings by two leave 2x2.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from esp.data.raw import Raw

_EVERY = 5
"""Every fifth image of each digit, in file order, is a test image."""


def convert(source: Path, download: bool) -> Raw:
    """1,442 + 355 images [1, 16, 16] of 10 digits; needs neither `source` nor a download."""
    with resources.files("esp.data").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).to(torch.int64)
    images = _doubled(images)
    test = _test_mask(labels)
    classes = tuple(str(digit) for digit in range(10))
    return Raw(images[~test], labels[~test], images[test], labels[test], classes, flips=False)


def _doubled(images: Tensor) -> Tensor:
    """uint8 [n, 8, 8] of 0..16 to uint8 [n, 1, 16, 16] of 0..255, bilinear.

    Doubling weighs by sixteenths, so all of this is exact and the same on every machine.
    """
    wide = interpolate(images[:, None].to(torch.float64), scale_factor=2, mode="bilinear", align_corners=False)
    return (wide * (255 / 16)).round().to(torch.uint8)


def _test_mask(labels: Tensor) -> Tensor:
    """bool [n]: the test images."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        mask[(labels == digit).nonzero().squeeze(1)[_EVERY - 1 :: _EVERY]] = True
    return mask
