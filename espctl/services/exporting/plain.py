"""A synthetic set as plain images, and the files that other programs read."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from esp import files
from esp.errors import InputError

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_NAME_LENGTH = 60


@dataclass(frozen=True)
class Plain:
    """A decoded synthetic set.

    Attributes:
        images: as networks see them, float32 [n, c, h, w].
        pixels: the same images as pixels, rounded and clamped, uint8 [n, c, h, w].
        clamped: share of their numbers that lay outside of [0, 255] by more than rounding.
        labels: int64 [n]; of a soft label its largest entry.
        soft_labels: float32 [n, classes], or None when every label is one class.
        classes: one name per label.
        mean, std: per channel, of pixels in 0 to 1.
        flips: whether mirrored images keep their label.
        space: pixel space of `images`: `normalised` is (pixel / 255 - mean) / std, others are whitened.
        test_pixels, test_labels: real test images uint8 [m, c, h, w] and int64 [m], if they were asked.
    """

    images: Tensor
    pixels: Tensor
    clamped: float
    labels: Tensor
    soft_labels: Tensor | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool
    space: str
    test_pixels: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What array files hold. The names that `tensors:FILE` reads are among them, the test images if asked."""
        found = {"train_images": self.pixels, "train_labels": self.labels, "images": self.images}
        optional = {
            "soft_labels": self.soft_labels,
            "test_images": self.test_pixels,
            "test_labels": self.test_labels,
        }
        return {**found, **{name: value for name, value in optional.items() if value is not None}}


def write_safetensors(path: Path, plain: Plain, facts: dict[str, Any]) -> None:
    """One file of tensors. `tensors:FILE` reads `classes` and `flips` in its metadata; `export` has all the rest."""
    metadata = {
        "classes": json.dumps(list(plain.classes)),
        "flips": json.dumps(plain.flips),
        "export": files.canonical(facts),
    }
    save_file({name: tensor.contiguous() for name, tensor in plain.arrays.items()}, path, metadata=metadata)


def write_npz(path: Path, plain: Plain, facts: dict[str, Any]) -> None:
    """One compressed file of arrays, without any pickle: `classes` are text, `export` is JSON text."""
    arrays = {name: tensor.numpy() for name, tensor in plain.arrays.items()}
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            classes=np.array(plain.classes, dtype=np.str_),
            mean=np.array(plain.mean),
            std=np.array(plain.std),
            export=np.array(files.canonical(facts)),
            **arrays,
        )


def write_images(folder: Path, plain: Plain, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """`train/CLASS/NUMBER.png`, `test/...` if asked, and `classes.json`, which says what class a folder is.

    Returns a row for each training image: its path below `train`, its label and class, its soft label if it has one.

    Raises:
        InputError: the images have neither one channel nor three.
    """
    if plain.pixels.shape[1] not in (1, 3):
        raise InputError(f"images of {plain.pixels.shape[1]} channels are no PNG files", "export to safetensors or npz")
    folders = folder_names(plain.classes)
    listed = [{"label": label, "name": name, "folder": folders[label]} for label, name in enumerate(plain.classes)]
    (folder / "classes.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "export.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps({"flips": plain.flips}) + "\n", encoding="utf-8")
    paths = _write_split(folder / "train", plain.pixels, plain.labels, folders)
    if plain.test_pixels is not None and plain.test_labels is not None:
        _write_split(folder / "test", plain.test_pixels, plain.test_labels, folders)
    soft = None if plain.soft_labels is None else plain.soft_labels.tolist()
    if soft is not None:
        named = dict(zip(paths, soft, strict=True))
        (folder / "soft_labels.json").write_text(json.dumps(named) + "\n", encoding="utf-8")
    return _rows(paths, plain.labels.tolist(), plain.classes, soft)


def write_huggingface(folder: Path, plain: Plain, facts: dict[str, Any], card: str) -> None:
    """The tree of `write_images` with a data card and the `metadata.jsonl` that the hub's loader reads."""
    rows = write_images(folder, plain, facts)
    _write_metadata(folder / "train", rows)
    if plain.test_labels is not None:
        soft = torch.eye(len(plain.classes)).tolist() if plain.soft_labels is not None else None
        labels, names = plain.test_labels.tolist(), folder_names(plain.classes)
        _write_metadata(
            folder / "test", _rows(_paths(labels, names), labels, plain.classes, soft and [soft[y] for y in labels])
        )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _rows(
    paths: Sequence[str], labels: Sequence[int], classes: Sequence[str], soft: Sequence[Sequence[float]] | None
) -> list[dict[str, Any]]:
    rows = [
        {"file_name": path, "label": label, "class": classes[label]} for path, label in zip(paths, labels, strict=True)
    ]
    return rows if soft is None else [{**row, "soft_label": list(s)} for row, s in zip(rows, soft, strict=True)]


def _write_metadata(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def _write_split(folder: Path, pixels: Tensor, labels: Tensor, folders: Sequence[str]) -> list[str]:
    """Write every image as `FOLDER/NUMBER.png`; returns these paths, in the order of the images."""
    for name in folders:
        (folder / name).mkdir(parents=True)
    paths = _paths(labels.tolist(), folders)
    for path, image in zip(paths, pixels, strict=True):
        array = (image[0] if len(image) == 1 else image.permute(1, 2, 0)).contiguous().numpy()
        Image.fromarray(array).save(folder / path)
    return paths


def _paths(labels: Sequence[int], folders: Sequence[str]) -> list[str]:
    digits = max(4, len(str(len(labels) - 1)))
    return [f"{folders[label]}/{index:0{digits}d}.png" for index, label in enumerate(labels)]


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class: its own where that is safe on every system, else something like it.

    Loaders number classes in the order of their folders. Where the names would give another order, or are equal but
    for case, the label is put before each of them.
    """
    safe = [_safe(name) for name in classes]
    folded = [name.casefold() for name in safe]
    if safe == sorted(safe) and folded == sorted(folded) and len(set(folded)) == len(folded) and all(safe):
        return tuple(safe)
    digits = len(str(len(classes) - 1))
    return tuple(f"{label:0{digits}d}-{name}".rstrip("-") for label, name in enumerate(safe))


def _safe(name: str) -> str:
    """Letters, digits, and `-_.` or spaces between them; anything else, and what some system reserves, becomes `_`."""
    text = "".join(c if c.isalnum() or c in "-_. " else "_" for c in unicodedata.normalize("NFC", name))
    text = text[:_NAME_LENGTH].strip(" .")
    text = f"_{text[1:]}" if text.startswith("-") else text
    return f"_{text}" if text.partition(".")[0].casefold() in _RESERVED else text
