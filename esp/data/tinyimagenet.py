"""Tiny ImageNet: 200 classes of 64x64 photographs, read from the tree of its official archive.

The labels of the test images were never published, so the field scores on the validation images, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from esp.data.images import Layout, decode, survey
from esp.data.official import obtaining
from esp.data.raw import Raw, Statistics, expect_counts
from esp.errors import DataError
from esp.vision import torchvision

TINY_IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FOLDER = "tiny-imagenet-200"
_URL = f"http://cs231n.stanford.edu/{FOLDER}.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def convert(source: Path, download: bool) -> Raw:
    """100,000 + 10,000 images [3, 64, 64] of 200 classes.

    Args:
        source: the folder that holds `tiny-imagenet-200`, or that folder itself.
        download: whether to fetch and unpack the archive when the folder is missing.

    Raises:
        DataError: the tree is missing or incomplete, or cannot be downloaded.
    """
    root = source if source.name == FOLDER else source / FOLDER
    if download and not (root / "train").is_dir():
        fetch_archive(root.parent)
    return expect_counts(read(root), "tinyimagenet", 100_000, 10_000, 200)


def fetch_archive(folder: Path, url: str = _URL, md5: str = _MD5) -> None:
    """Download the archive into `folder`, unless it is there, and unpack it there.

    Raises:
        DataError: it cannot be downloaded, or what came is not the official archive.
    """
    with obtaining("tinyimagenet", folder, f"{FOLDER}/ or {FOLDER}.zip", download=True):
        torchvision().datasets.utils.download_and_extract_archive(url, str(folder), md5=md5)


def read(root: Path) -> Raw:
    """The tree at `root`: train/<class>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt.

    Labels number the classes (WordNet identifiers) in alphabetical order. The validation images lie in one folder for
    all classes; the annotation file says which is which.

    Raises:
        DataError: a folder, an annotation or an image is missing or damaged.
    """
    with _complete(root):
        classes = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
        train = [(file, label) for label, name in enumerate(classes) for file in _training_files(root, name)]
        test = _annotated(root, classes)
    layout = Layout(survey([file for file, _ in train + test]).size, gray=False)
    return Raw(
        decode([file for file, _ in train], layout),
        torch.tensor([label for _, label in train], dtype=torch.int64),
        decode([file for file, _ in test], layout),
        torch.tensor([label for _, label in test], dtype=torch.int64),
        classes,
        flips=True,
        constants=TINY_IMAGENET,
    )


def _training_files(root: Path, name: str) -> list[Path]:
    return sorted((root / "train" / name / "images").glob("*.JPEG"))


def _annotated(root: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The validation images and their labels, in the order of the annotation file."""
    labels = {name: label for label, name in enumerate(classes)}
    found = []
    annotations = root / "val" / "val_annotations.txt"
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels:
            raise DataError(f"{annotations}, line {number}: no known class is named", "fetch the archive again")
        found.append((root / "val" / "images" / fields[0], labels[fields[1]]))
    return found


@contextmanager
def _complete(root: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"tinyimagenet is not in {root}: there is no {error.filename}",
            f"run: espctl data fetch tinyimagenet (it needs a network), or unpack {FOLDER}.zip into {root.parent}",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the annotations of {root} are not text", "fetch the archive again") from error
