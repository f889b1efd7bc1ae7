"""A data set in memory: images as uint8, labels, and the constants that normalise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esp.artifact import tensor_digest
from esp.data.raw import TENSORS, Raw
from esp.data.whitening import Whitening
from esp.errors import DataError, InputError
from esp.files import canonical, sha256
from esp.rng import Key
from esp.spaces import NORMALISED

OFFICIAL = "official"
"""The split that a data set comes with."""

HELD_OUT = Key(0).fold("held out")
"""Names the images that are held out where nobody says which."""


@dataclass(frozen=True)
class Dataset:
    """A labelled set of images of one size, split into training and test images.

    Args:
        name: canonical name, as in `cifar10`, `folder:/absolute/path`, `tensors:/absolute/file`.
        train_images: uint8 [N, c, h, w]; maps the pages of the file it was loaded from.
        train_labels: int64 [N].
        test_images: uint8 [M, c, h, w].
        test_labels: int64 [M].
        classes: one name per label.
        mean: per channel, of training pixels in [0, 1].
        std: per channel, likewise.
        statistics: `field` when mean and std are the constants everybody uses for this set, else `computed`.
        flips: whether an image mirrored left to right keeps its label.
        fingerprint: SHA-256 over the four tensors and the class names.
        split: `official`, or how `held_out` made it.
        whitening: of the pixel space that `normalise` leads to, where that is not plainly normalised.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics: str
    flips: bool
    fingerprint: str
    split: str = OFFICIAL
    whitening: Whitening | None = None

    @property
    def space(self) -> str:
        """Name of the pixel space that `normalise` leads to, one of `esp.spaces.SPACES`."""
        return self.whitening.space if self.whitening else NORMALISED

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def channels(self) -> int:
        """Channels of one image."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Height of one image in pixels."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Width of one image in pixels."""
        return self.shape[2]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels to the space that networks see: (x - mean) / std per channel, or the whitening.

        Args:
            images: uint8 [..., c, h, w] of 0 to 255, or floating point [..., c, h, w] of 0 to 1 (differentiable).

        Returns:
            float32 (or the floating type of `images`) [..., c, h, w] on the device of `images`.
        """
        if self.whitening:
            return self._whiten(images, self.whitening)
        if images.dtype == torch.uint8:
            pixels = images.to(torch.float32).div_(255)
            return pixels.sub_(_column(self.mean, pixels)).div_(_column(self.std, pixels))
        return (images - _column(self.mean, images)) / _column(self.std, images)

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`, rounded and clamped: floating point [..., c, h, w] to uint8 [..., c, h, w]."""
        if self.whitening is None:
            return to_pixels(images, self.mean, self.std)
        undone = self.whitening.undo(images.detach().reshape(-1, math.prod(self.shape))).reshape(images.shape)
        zca = self.whitening.space == "zca"
        return to_pixels(undone, *(((0.0,), (1.0,)) if zca else (self.mean, self.std)))

    def _whiten(self, images: Tensor, whitening: Whitening) -> Tensor:
        pixels = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
        if whitening.space == "kip":
            pixels = (pixels - _column(self.mean, pixels)) / _column(self.std, pixels)
        return whitening.apply(pixels.reshape(-1, math.prod(self.shape))).reshape(images.shape)

    def class_indices(self) -> list[Tensor]:
        """For each class, the int64 indices of its training images, ascending."""
        order = self.train_labels.argsort(stable=True)
        counts = torch.bincount(self.train_labels, minlength=self.num_classes)
        return list(torch.split(order, counts.tolist()))

    def held_out(self, fraction: float, key: Key = HELD_OUT) -> Dataset:
        """The same set with a part of its training images in place of the test images.

        What is tuned on this part never sees the test images. The same key holds out the same images. Name, constants
        and fingerprint stay those of the whole set; `split` tells the two apart.

        Args:
            fraction: of the training images of each class, in (0, 1); at least one image stays on either side.
            key: which images; left alone, the same ones for experts, studies and everybody else.

        Raises:
            InputError: `fraction` is out of range.
            DataError: a class has a single training image.
        """
        if not 0 < fraction < 1:
            raise InputError(f"cannot hold out a fraction of {fraction}", "give a number between 0 and 1")
        kept, held = [], []
        for label, indices in enumerate(self.class_indices()):
            if len(indices) < 2:
                raise DataError(
                    f"{self.name}: class {self.classes[label]!r} has one training image, none can be held out",
                    "give each class two training images or more",
                )
            count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
            shuffled = indices[torch.randperm(len(indices), generator=key.fold("held-out", label).generator())]
            held.append(shuffled[:count])
            kept.append(shuffled[count:])
        return self._resplit(torch.cat(kept).sort().values, torch.cat(held).sort().values, f"held-out {fraction}")

    def _resplit(self, train: Tensor, test: Tensor, split: str) -> Dataset:
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.train_images[test],
            test_labels=self.train_labels[test],
            split=split,
        )


def fingerprint(raw: Raw | Dataset) -> str:
    """SHA-256 over the names, types, shapes and bytes of the four tensors, and the class names in order."""
    digests = {name: tensor_digest(getattr(raw, name)) for name in TENSORS}
    return sha256(canonical({"tensors": digests, "classes": list(raw.classes)}))


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images normalised by `mean` and `std` per channel, as rounded and clamped uint8 pixels [..., c, h, w]."""
    pixels = (images.detach() * _column(std, images) + _column(mean, images)) * 255
    return pixels.nan_to_num_(nan=0.0).round_().clamp_(0, 255).to(torch.uint8)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Per-channel values as [c, 1, 1] of the type and device of `like`; made there, for a transfer would wait."""
    parts = [torch.full((1,), value, dtype=like.dtype, device=like.device) for value in values]
    return torch.cat(parts)[:, None, None]
