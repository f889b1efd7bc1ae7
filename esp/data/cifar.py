"""CIFAR-10 and CIFAR-100 from their official python batches, read by torchvision after their checksums matched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esp.data.official import obtaining
from esp.data.raw import Raw, Statistics, expect_counts
from esp.vision import torchvision

CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# Some repositories reuse the constants of CIFAR-10 here; these are the set's own.
CIFAR100: Statistics = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))


def cifar10(source: Path, download: bool) -> Raw:
    """50,000 + 10,000 images [3, 32, 32] of 10 classes.

    Raises:
        DataError: the files are not in `source`, are altered, or cannot be downloaded.
    """
    raw = read("cifar10", torchvision().datasets.CIFAR10, source, download, CIFAR10)
    return expect_counts(raw, "cifar10", 50_000, 10_000, 10)


def cifar100(source: Path, download: bool) -> Raw:
    """50,000 + 10,000 images [3, 32, 32] of 100 classes (the fine labels).

    Raises:
        DataError: the files are not in `source`, are altered, or cannot be downloaded.
    """
    raw = read("cifar100", torchvision().datasets.CIFAR100, source, download, CIFAR100)
    return expect_counts(raw, "cifar100", 50_000, 10_000, 100)


def read(name: str, loader: Any, source: Path, download: bool, constants: Statistics) -> Raw:
    """Both splits through a torchvision loader of the CIFAR kind.

    Args:
        name: of the data set, for errors.
        loader: `torchvision.datasets.CIFAR10` or a class like it.
        source: the folder that holds the loader's base folder, or that base folder itself.
        download: whether the loader may fetch what is missing.
        constants: mean and standard deviation per channel.
    """
    root = source.parent if source.name == loader.base_folder else source
    with obtaining(name, root, f"{loader.base_folder}/ or {loader.filename}", download):
        train, test = (loader(str(root), train=part, download=download) for part in (True, False))
        images = [_planes(torch.from_numpy(split.data)) for split in (train, test)]
        labels = [torch.tensor(split.targets, dtype=torch.int64) for split in (train, test)]
    return Raw(images[0], labels[0], images[1], labels[1], tuple(train.classes), flips=True, constants=constants)


def _planes(images: Tensor) -> Tensor:
    """[n, h, w, c] to contiguous [n, c, h, w]."""
    return images.permute(0, 3, 1, 2).contiguous()
