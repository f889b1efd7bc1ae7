"""`folder:PATH`: images of one's own as PATH/train/<class>/<image> and PATH/test/<class>/<image>."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from esp.data.images import SUFFIXES, decode, survey
from esp.data.raw import Raw
from esp.errors import DataError
from esp.files import canonical, read_json, sha256

OPTIONS = "dataset.json"
_LAYOUT = "it must hold train/<class>/<image> and test/<class>/<image>"


def convert(path: Path) -> Raw:
    """Read a tree of images; its classes are the folders of `train`, in alphabetical order.

    All images have one size. They get one channel when every file is gray, else three. Mirrored images count as other
    images, unless a file `dataset.json` beside `train` says `{"flips": true}`.

    Raises:
        DataError: a folder is missing or empty, the classes of the two splits differ, or an image cannot be used.
    """
    files = {split: _by_class(path, split) for split in ("train", "test")}
    classes = tuple(files["train"])
    _compare(path, files)
    paths = {split: [file for label in classes for file in files[split][label]] for split in files}
    layout = survey(paths["train"] + paths["test"])
    return Raw(
        decode(paths["train"], layout),
        _labels(files["train"], classes),
        decode(paths["test"], layout),
        _labels(files["test"], classes),
        classes,
        flips=_flips(path),
    )


def stamp(path: Path) -> str:
    """A hash of the names, sizes and times of the files that `convert` reads: it changes when the images do.

    Raises:
        DataError: a folder is missing or empty.
    """
    paths = [file for split in ("train", "test") for files in _by_class(path, split).values() for file in files]
    options = path / OPTIONS
    found: list[tuple[str, int, int]] = []
    for file in [*paths, *([options] if options.exists() else [])]:
        state = file.stat()
        found.append((str(file.relative_to(path)), state.st_size, state.st_mtime_ns))
    return sha256(canonical(found))


def _by_class(path: Path, split: str) -> dict[str, list[Path]]:
    """The image files of each class folder of one split, both in alphabetical order."""
    folder = path / split
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", _LAYOUT)
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            found[entry.name] = _images(entry)
    return found


def _images(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    files = [file for file in (folder / name for name in names) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{folder} holds no image", f"put images into it ({', '.join(sorted(SUFFIXES))})")
    return files


def _compare(path: Path, files: dict[str, dict[str, list[Path]]]) -> None:
    if len(files["train"]) < 2:
        found = len(files["train"])
        raise DataError(f"{path / 'train'} holds {found} class folders, at least 2 are needed", _LAYOUT)
    for one, other in (("train", "test"), ("test", "train")):
        missing = [label for label in files[one] if label not in files[other]]
        if missing:
            raise DataError(
                f"class {missing[0]!r} is in {path / one} but not in {path / other}", "give every class both splits"
            )


def _labels(files: dict[str, list[Path]], classes: tuple[str, ...]) -> Tensor:
    """int64 [n], in the order of the classes."""
    counts = torch.tensor([len(files[label]) for label in classes])
    return torch.arange(len(classes)).repeat_interleave(counts)


def _flips(path: Path) -> bool:
    options = path / OPTIONS
    if not options.exists():
        return False
    value = read_json(options)
    if not isinstance(value, dict) or value.keys() - {"flips"} or not isinstance(value.get("flips", False), bool):
        raise DataError(f"{options} is not understood", 'write {"flips": true} or {"flips": false}')
    return bool(value.get("flips", False))
