"""Whitened pixel spaces: ZCA as MTT takes it from kornia, and KIP's own (methods.md 1.2).

A whitening is fitted to the training images once and kept beside the converted data set, as a file that verifies
itself. For 32x32 RGB images the matrix and its inverse are 3072 x 3072 float32 numbers, 38 MB each; fitting 50,000
images takes one to two minutes on two cores and 0.6 GB, once; bringing 10,000 images there takes 3 seconds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from esp import artifact
from esp.data.dataset import Dataset
from esp.data.whitening import Whitening, unit_rows
from esp.errors import ArtifactError, InputError, UnknownNameError
from esp.files import DAMAGED
from esp.spaces import NORMALISED, SPACES

LARGEST = 4_096
"""Numbers in an image at most. At 64x64 RGB (12,288) each matrix takes 0.6 GB, its decomposition hours and 5 GB."""

REGULARISER = 0.1
_ROWS = 1_000  # images whose products are summed at a time


def in_space(data: Dataset, space: str, cache: Path) -> Dataset:
    """The data set whose `normalise` leads to a pixel space, training and test images alike.

    Args:
        data: with its official split: a whitening belongs to the whole training set, and is kept by its fingerprint.
        space: a name of `esp.spaces.SPACES`.
        cache: folder of converted data sets; whitenings are kept in a folder below it.

    Raises:
        UnknownNameError: there is no such space.
        InputError: the images are too large to be whitened.
        ArtifactError: the kept whitening is damaged.
    """
    require_space(space)
    if space == NORMALISED:
        return replace(data, whitening=None)
    size = math.prod(data.shape)
    if size > LARGEST:
        raise InputError(
            f"whitening images of {'x'.join(map(str, data.shape))} takes matrices of {size}x{size} numbers, "
            f"{4 * size**2 / 1e9:.1f} GB each and {8 * 4 * size**2 / 1e9:.0f} GB to compute them",
            f"use the space {NORMALISED}; whitened are images of at most {LARGEST} numbers",
        )
    path = location(data, space, cache)
    if not path.exists():
        save(path, fit(data, space), data)
    return replace(data, whitening=load(path, data, space))


def require_space(space: str) -> None:
    """Raise `UnknownNameError` unless `space` is the name of one."""
    if space not in SPACES:
        raise UnknownNameError("pixel space", space, SPACES)


def location(data: Dataset, space: str, cache: Path) -> Path:
    """Where the whitening of a data set is kept."""
    return cache / "whitening" / f"{space}-{data.fingerprint[:16]}.safetensors"


def save(path: Path, whitening: Whitening, data: Dataset) -> None:
    """Write a whitening of `data`."""
    meta = {"kind": "whitening", "space": whitening.space, "fingerprint": data.fingerprint, "length": whitening.length}
    tensors = {"mean": whitening.mean, "matrix": whitening.matrix, "inverse": whitening.inverse}
    artifact.save(path, tensors, {**meta, "dataset": data.name, "regulariser": REGULARISER})


def load(path: Path, data: Dataset, space: str) -> Whitening:
    """Read and verify a whitening of `data`.

    Raises:
        ArtifactError: it is damaged, or of something else.
    """
    try:
        found = artifact.load(path)
    except ArtifactError as error:
        raise ArtifactError(error.message, f"remove {path}: it is computed again") from error
    meta = found.meta
    if [meta.get(name) for name in ("kind", "space", "fingerprint")] != ["whitening", space, data.fingerprint]:
        raise ArtifactError(f"{path} is not the {space} whitening of {data.name}", DAMAGED)
    mean, matrix, inverse = (found.tensors[name] for name in ("mean", "matrix", "inverse"))
    return Whitening(space, mean, matrix, inverse, meta["length"])


def fit(data: Dataset, space: str) -> Whitening:
    """Fit a whitening to the training images of `data`, in float64 on the CPU.

    `zca`: covariance of pixels in 0 to 1 with n - 1, eigenvalues + 0.1. `kip`: second moments with n of normalised
    images of mean 0 and length 1 each, diagonal + 0.1 trace / d; with fewer images than numbers in one, directions
    that no image has are left as they are.
    """
    count, size = len(data.train_images), math.prod(data.shape)
    mean, length = torch.zeros(size, dtype=torch.float64), 0.0
    for part in torch.split(data.train_images, _ROWS):
        rows = _rows(data, part, space)
        mean += rows.sum(0) / count
        length += float((rows - rows.mean(1, keepdim=True)).norm(dim=1).sum()) / count
    mean, length = (torch.zeros_like(mean), length) if space == "kip" else (mean, 1.0)
    moments = torch.zeros(size, size, dtype=torch.float64)
    for part in torch.split(data.train_images, _ROWS):
        rows = _rows(data, part, space)
        rows = unit_rows(rows) if space == "kip" else rows - mean
        moments.addmm_(rows.T, rows)
    moments /= count if space == "kip" else max(1, count - 1)
    values, basis = torch.linalg.eigh(moments)
    ridge = REGULARISER * float(values.mean()) if space == "kip" else REGULARISER
    roots = (values.clamp(min=0) + ridge).sqrt()
    if space == "kip" and count < size:
        roots[: size - count] = 1.0  # eigenvalues ascend: these belong to directions that no image has
    matrices = ((basis * factor) @ basis.T for factor in (1 / roots, roots))
    matrix, inverse = (value.to(torch.float32).contiguous() for value in matrices)
    return Whitening(space, mean.to(torch.float32), matrix, inverse, length)


def _rows(data: Dataset, images: Tensor, space: str) -> Tensor:
    """uint8 images as float64 rows [n, d]: pixels in 0 to 1, normalised for `kip`."""
    pixels = images.to(torch.float64) / 255
    return (replace(data, whitening=None).normalise(pixels) if space == "kip" else pixels).flatten(1)
