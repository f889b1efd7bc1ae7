"""Image files to uint8 tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from esp.data.raw import reading
from esp.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"})
_GRAY = frozenset({"1", "L", "LA"})
_DEEP = ("I", "F")
_BATCH = 1024


@dataclass(frozen=True)
class Layout:
    """What all files of a set have in common.

    Args:
        size: width and height in pixels.
        gray: whether every file is gray, so that one channel holds it.
    """

    size: tuple[int, int]
    gray: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.gray else 3, self.size[1], self.size[0])


def survey(paths: Sequence[Path]) -> Layout:
    """Read the headers of image files and make sure that they fit together.

    Raises:
        DataError: a file cannot be read as an image, is larger than Pillow's safety limit, or has more than 8 bits per
            value; or two files differ in size (both are named).
    """
    first, gray = None, True
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in paths:
            size, mode = _header(path)
            first = first or size
            if size != first:
                raise DataError(
                    f"{paths[0]} has {first[0]}x{first[1]} pixels but {path} has {size[0]}x{size[1]}",
                    "resize all images to one size first",
                )
            gray = gray and mode in _GRAY
    if first is None:
        raise DataError("there are no images to read", "give at least one image")
    return Layout(first, gray)


def _header(path: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} has too many pixels to be opened safely", "resize it, or remove it") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a readable image", "repair it, or remove it") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(path, error) from error
    if mode.startswith(_DEEP):
        raise DataError(f"{path} has more than 8 bits per value ({mode})", "convert all images to 8 bits first")
    return size, mode


def decode(paths: Sequence[Path], layout: Layout) -> Tensor:
    """Pixels of image files as uint8 [n, c, h, w]; transparency is dropped.

    Raises:
        DataError: a file is damaged, or all of them together do not fit into memory.
    """
    try:
        images = torch.empty((len(paths), *layout.shape), dtype=torch.uint8)
    except RuntimeError as error:
        size = len(paths) * int(np.prod(layout.shape)) / 2**30
        raise DataError(f"{len(paths)} images need {size:.0f} GiB of memory", "use fewer or smaller images") from error
    # Pillow decodes without Python's lock. Batches, so that a failure does not wait for a hundred thousand files.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            for index, pixels in enumerate(pool.map(lambda path: _pixels(path, layout), batch), start):
                images[index] = pixels
    return images


def _pixels(path: Path, layout: Layout) -> Tensor:
    """One file as uint8 [c, h, w]."""
    try:
        with reading("image", path), Image.open(path) as image:
            # A palette with transparency must lose it in two steps, or Pillow warns.
            opened = image.convert("RGBA") if "transparency" in image.info else image
            array = np.array(opened.convert("L" if layout.gray else "RGB"))
    except OSError as error:
        raise _unreadable(path, error) from error
    pixels = torch.from_numpy(array)
    if array.shape[:2] != layout.size[::-1]:
        raise DataError(f"{path} changed while it was read", "try again when nothing writes to the folder")
    return pixels[None] if layout.gray else pixels.permute(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> DataError:
    detail = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(f"{path} is not a readable image ({detail})", "repair it, or remove it")
