"""What a converter returns, and the checks that every data set passes before it is used."""

from __future__ import annotations

import struct
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esp.errors import DataError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_CHUNK = 4096


@dataclass(frozen=True)
class Raw:
    """A data set as it comes from its converter.

    Args:
        train_images: uint8 [N, c, h, w].
        train_labels: int64 [N], from 0 to the number of classes less one.
        test_images: uint8 [M, c, h, w].
        test_labels: int64 [M].
        classes: one name per label.
        flips: whether an image mirrored left to right keeps its label.
        constants: mean and standard deviation per channel that the field uses for this set, of pixels in [0, 1];
            None to compute them.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    flips: bool
    constants: Statistics | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {name: getattr(self, name) for name in TENSORS}


TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def validate(raw: Raw, name: str) -> None:
    """Check that a set can be learned from: types, shapes, lengths, labels and classes.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    _check_classes(raw.classes, name)
    for split in ("train", "test"):
        images, labels = getattr(raw, f"{split}_images"), getattr(raw, f"{split}_labels")
        _check_images(images, split, name)
        _check_labels(labels, len(images), raw.classes, split, name)
    train, test = tuple(raw.train_images.shape[1:]), tuple(raw.test_images.shape[1:])
    if train != test:
        raise DataError(
            f"{name}: training images are {_size(train)} but test images are {_size(test)}",
            "bring all images to one size and number of channels",
        )


def _check_classes(classes: Sequence[str], name: str) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{name} has {len(classes)} classes, at least 2 are needed", "give images of two classes or more"
        )
    twice = sorted({label for label in classes if list(classes).count(label) > 1})
    if twice:
        raise DataError(f"{name}: the class name {twice[0]!r} appears twice", "give every class its own name")


def _check_images(images: Tensor, split: str, name: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"{name}: {split}_images is {images.dtype} of shape {list(images.shape)}, not uint8 [n, c, h, w]",
            "store images as uint8 with the axes n, c, h, w",
        )
    if not images.numel():
        raise DataError(
            f"{name}: {split}_images has shape {list(images.shape)} and is empty", "give at least one image"
        )


def _check_labels(labels: Tensor, count: int, classes: Sequence[str], split: str, name: str) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(
            f"{name}: {split}_labels is {labels.dtype} of shape {list(labels.shape)}, not int64 [n]",
            "store one whole number per image",
        )
    if len(labels) != count:
        raise DataError(f"{name}: {count} {split} images but {len(labels)} labels", "give one label per image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"{name}: {split} labels go from {low} to {high}, expected 0 to {len(classes) - 1}",
            "number the classes from 0 without gaps",
        )
    counts = torch.bincount(labels, minlength=len(classes))
    if not bool(counts.all()):
        empty = classes[int((counts == 0).nonzero()[0])]
        raise DataError(
            f"{name}: class {empty!r} has no {split} image", "give every class at least one image in both splits"
        )


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def expect_counts(raw: Raw, name: str, train: int, test: int, classes: int) -> Raw:
    """Return `raw` when it has the official numbers of images and classes.

    Raises:
        DataError: the source holds another number; it is truncated, or another set.
    """
    found = (len(raw.train_images), len(raw.test_images), len(raw.classes))
    if found != (train, test, classes):
        raise DataError(
            f"{name} holds {found[0]} training and {found[1]} test images of {found[2]} classes, "
            f"the official set {train}, {test} and {classes}",
            "remove its raw files and fetch it again",
        )
    return raw


def statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation per channel of uint8 images [n, c, h, w], as pixels in [0, 1].

    Exact: computed from the histogram of the 256 values. A channel that is constant gets the deviation 1/255, so that
    dividing by it stays finite.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        weights = _histogram(images[:, channel]) / images[:, channel].numel()
        mean = float(weights @ values)
        means.append(mean)
        deviations.append(max(float(weights @ (values - mean) ** 2) ** 0.5, 1 / 255))
    return tuple(means), tuple(deviations)


def _histogram(pixels: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each of the 256 values occurs; in chunks, because `bincount` widens its input to 64 bits."""
    counts = np.zeros(256, dtype=np.int64)
    for chunk in torch.split(pixels, _CHUNK):
        counts += np.bincount(chunk.reshape(-1).numpy(), minlength=256)
    return counts


_PARSER_ERRORS = (
    ValueError, LookupError, ArithmeticError, AssertionError, EOFError, TypeError, RuntimeError, SyntaxError,
    struct.error, tokenize.TokenError,
)  # fmt: skip
"""What numpy, Pillow and scipy raise on damaged files; the last of a header that numpy takes for Python."""


@contextmanager
def reading(what: str, path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into a `DataError` that names the file."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory", "use fewer or smaller images") from error
    except _PARSER_ERRORS as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a readable {what} ({detail})", "check the file, or make it again") from error
