"""`tensors:FILE`: arrays of one's own, in a safetensors or npz file.

The file holds `train_images` [N, c, h, w], `train_labels` [N], `test_images` [M, c, h, w] and `test_labels` [M]. Images
are uint8, or floating point in [0, 1] (rounded to 256 values); labels are whole numbers from 0. The metadata of a
safetensors file may name the classes (`classes`, a JSON list) and allow mirrored images (`flips`, `true`).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esp.data.raw import TENSORS, Raw, reading
from esp.errors import DataError
from esp.files import canonical, sha256

SUFFIXES = (".safetensors", ".npz")
_KEYS = "a file holds train_images, train_labels, test_images and test_labels"


def convert(path: Path) -> Raw:
    """Read a file of arrays. Mirrored images count as other images unless its metadata says otherwise.

    Raises:
        DataError: the file is damaged or of another kind; an array is missing, or its type, shape or range is wrong.
    """
    arrays, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
    tensors = {
        name: (_images if name.endswith("images") else _labels)(value, name, path) for name, value in arrays.items()
    }
    classes = _classes(metadata, tensors, path)
    train_images, train_labels, test_images, test_labels = (tensors[name] for name in TENSORS)
    return Raw(train_images, train_labels, test_images, test_labels, classes, _flips(metadata, path))


def stamp(path: Path) -> str:
    """A hash of the size and time of the file.

    Raises:
        DataError: there is no such file, or its name has another suffix.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", "check the path")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is neither a .safetensors nor a .npz file", "save the arrays in one of these formats")
    state = path.stat()
    return sha256(canonical([state.st_size, state.st_mtime_ns]))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            _check_keys(set(file.keys()), path)
            return {name: file.get_tensor(name) for name in TENSORS}, file.metadata() or {}
    except SafetensorError as error:
        raise DataError(f"{path} is not a readable safetensors file ({error})", "make the file again") from error


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # Opened here, because numpy leaves a damaged file open.
        with reading("npz file", path), path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an npz file", _KEYS)
            _check_keys(set(file.files), path)
            return {name: _native(file[name], name, path) for name in TENSORS}, {}
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise DataError(f"{path} is not a readable npz file ({error})", "make the file again") from error


def _native(array: object, name: str, path: Path) -> Tensor:
    """A tensor of a numpy array; torch knows neither other byte orders nor all unsigned types."""
    if not isinstance(array, np.ndarray):  # a member that does not begin as an array is handed out as bytes
        raise DataError(f"{path}: {name} is no numpy array", "make the file again with numpy.savez")
    if array.dtype.kind not in "uif":
        raise DataError(f"{path}: {name} has the type {array.dtype}", "use uint8 or float images, and integer labels")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _check_keys(found: set[str], path: Path) -> None:
    missing = [name for name in TENSORS if name not in found]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}", _KEYS)


def _images(images: Tensor, name: str, path: Path) -> Tensor:
    """uint8 [n, c, h, w] of uint8 or floating-point images."""
    if images.ndim != 4:
        hint = "add the axis of the channels: images[:, None]" if images.ndim == 3 else "use the axes n, c, h, w"
        raise DataError(f"{path}: {name} has {images.ndim} axes, not the 4 of [n, c, h, w]", hint)
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        shape = list(images.shape)
        raise DataError(f"{path}: {name} has its channels last {shape}", "move them: images.transpose(0, 3, 1, 2)")
    if images.dtype == torch.uint8:
        return images.contiguous()
    if not images.dtype.is_floating_point:
        raise DataError(f"{path}: {name} has the type {images.dtype}", "use uint8, or floating point in [0, 1]")
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):  # "not", so that NaN fails
        low, high = float(images.min()), float(images.max())
        raise DataError(f"{path}: {name} goes from {low:g} to {high:g}, not from 0 to 1", "scale it, or store uint8")
    return images.to(torch.float32).mul(255).round_().to(torch.uint8)


def _labels(labels: Tensor, name: str, path: Path) -> Tensor:
    """int64 [n] of labels of any integer type."""
    if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise DataError(f"{path}: {name} has the type {labels.dtype}", "use whole numbers from 0")
    if labels.ndim != 1:
        raise DataError(f"{path}: {name} has {labels.ndim} axes, not the one of [n]", "give one number per image")
    return labels.to(torch.int64)


def _classes(metadata: dict[str, str], tensors: dict[str, Tensor], path: Path) -> tuple[str, ...]:
    """The class names of the metadata, else the labels themselves as text."""
    if "classes" in metadata:
        names = _json(metadata["classes"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"{path}: the metadata 'classes' is not a list of names", 'write it as JSON: ["cat", "dog"]'
            )
        return tuple(names)
    labels = set(tensors["train_labels"].tolist())
    gaps = sorted(set(range(len(labels))) - labels)
    if gaps:
        raise DataError(
            f"{path}: train_labels has {len(labels)} different values from {min(labels)} to {max(labels)}, "
            f"and {gaps[0]} is not among them",
            "number the classes from 0 without gaps",
        )
    return tuple(str(label) for label in range(len(labels)))


def _flips(metadata: dict[str, str], path: Path) -> bool:
    value = _json(metadata.get("flips", "false"))
    if not isinstance(value, bool):
        raise DataError(f"{path}: the metadata 'flips' is neither true nor false", "write true or false")
    return value


def _json(text: str) -> Any:
    """The value of a JSON text, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
