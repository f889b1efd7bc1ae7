"""What looks odd in a data set that is formally sound: few images of a class, copies, leaks, blank images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esp.data.dataset import Dataset

_CHUNK = 4096


@dataclass(frozen=True)
class Report:
    """Counts over a whole set.

    Args:
        dataset: the set.
        train_per_class: smallest and largest number of training images of a class.
        test_per_class: likewise of test images.
        repeated: training images that are exact copies of another training image.
        leaked: test images that are exact copies of a training image.
        blank: training images in which each channel has a single value.
    """

    dataset: Dataset
    train_per_class: tuple[int, int]
    test_per_class: tuple[int, int]
    repeated: int
    leaked: int
    blank: int


def examine(dataset: Dataset) -> Report:
    """Read every image of a set once and count."""
    seen = {hash(image.numpy().tobytes()) for image in dataset.train_images}
    return Report(
        dataset,
        _extremes(dataset.train_labels),
        _extremes(dataset.test_labels),
        repeated=len(dataset.train_images) - len(seen),
        leaked=sum(1 for image in dataset.test_images if hash(image.numpy().tobytes()) in seen),
        blank=sum(map(_blank, torch.split(dataset.train_images, _CHUNK))),
    )


def _extremes(labels: Tensor) -> tuple[int, int]:
    counts = torch.bincount(labels)
    return int(counts.min()), int(counts.max())


def _blank(images: Tensor) -> int:
    pixels = images.flatten(2)
    return int((pixels.amin(2) == pixels.amax(2)).all(1).sum())
