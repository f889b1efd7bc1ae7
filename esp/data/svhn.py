"""Street View House Numbers, the cropped digits without the "extra" images, read by torchvision."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from esp.data.official import obtaining
from esp.data.raw import Raw, Statistics, expect_counts
from esp.vision import torchvision

SVHN: Statistics = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


def convert(source: Path, download: bool) -> Raw:
    """73,257 + 26,032 images [3, 32, 32] of 10 digits; a mirrored digit is no digit, so no flips.

    Raises:
        DataError: the files are not in `source`, are altered, cannot be downloaded, or scipy is not installed.
    """
    return expect_counts(read(torchvision().datasets.SVHN, source, download), "svhn", 73_257, 26_032, 10)


def read(loader: Any, source: Path, download: bool) -> Raw:
    """Both splits through `torchvision.datasets.SVHN` or a class like it; label 10 of the files is the digit 0."""
    with obtaining("svhn", source, "train_32x32.mat and test_32x32.mat", download):
        importlib.import_module("scipy.io")  # the loader needs it; better to say so before it downloads 240 MB
        train, test = (loader(str(source), split=part, download=download) for part in ("train", "test"))
        images = [torch.from_numpy(split.data).contiguous() for split in (train, test)]
        labels = [torch.from_numpy(split.labels).to(torch.int64) for split in (train, test)]
    classes = tuple(str(digit) for digit in range(10))
    return Raw(images[0], labels[0], images[1], labels[1], classes, flips=False, constants=SVHN)
