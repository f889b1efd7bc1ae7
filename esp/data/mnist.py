"""MNIST and Fashion-MNIST from their idx files, read by torchvision.

torchvision checks the checksums of the compressed files when it downloads and unpacks them, and none of files that are
already unpacked; those must at least have the official numbers of images and labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esp.data.official import obtaining
from esp.data.raw import Raw, Statistics, expect_counts
from esp.vision import torchvision

MNIST: Statistics = ((0.1307,), (0.3081,))
FASHION_MNIST: Statistics = ((0.2861,), (0.3530,))


def mnist(source: Path, download: bool) -> Raw:
    """60,000 + 10,000 images [1, 28, 28] of 10 handwritten digits; no flips.

    Raises:
        DataError: the files are not in `source`, are altered, or cannot be downloaded.
    """
    raw = read("mnist", torchvision().datasets.MNIST, source, download, MNIST, flips=False)
    return expect_counts(raw, "mnist", 60_000, 10_000, 10)


def fashion_mnist(source: Path, download: bool) -> Raw:
    """60,000 + 10,000 images [1, 28, 28] of 10 kinds of clothing.

    Raises:
        DataError: the files are not in `source`, are altered, or cannot be downloaded.
    """
    raw = read("fashion_mnist", torchvision().datasets.FashionMNIST, source, download, FASHION_MNIST, flips=True)
    return expect_counts(raw, "fashion_mnist", 60_000, 10_000, 10)


def read(name: str, loader: Any, source: Path, download: bool, constants: Statistics, flips: bool) -> Raw:
    """Both splits through `torchvision.datasets.MNIST` or a class like it, from `source/<class name>/raw`."""
    folder = f"{loader.__name__}/raw"
    with obtaining(name, source, f"its four unpacked idx files, as {folder}/*-ubyte,", download):
        train, test = (loader(str(source), train=part, download=download) for part in (True, False))
        images = [split.data[:, None].contiguous() for split in (train, test)]
    return Raw(images[0], train.targets, images[1], test.targets, tuple(train.classes), flips, constants)
