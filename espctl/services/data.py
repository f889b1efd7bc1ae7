"""Data sets: which there are, fetching and converting them, their health, and pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from esp.condensed import Condensed
from esp.data import DATASETS, store
from esp.data.dataset import Dataset
from esp.data.health import Report
from esp.data.zca import in_space
from esp.errors import EspError, InputError
from esp.pictures import save_grid
from esp.rng import Key
from esp.spaces import NORMALISED
from espctl.services.project import Project, slug
from espctl.store.experts import record_dataset
from espctl.store.records import DatasetRecord


@dataclass(frozen=True)
class Listed:
    """A data set by name. What is unknown before it was converted is None; `damage` says why it cannot be used."""

    name: str
    converted: bool
    train: int | None = None
    test: int | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    bytes: int | None = None
    path: Path | None = None
    damage: str = ""


@dataclass(frozen=True)
class Info:
    """A converted data set. `statistics` is `field` for the constants everybody uses, else `computed`."""

    name: str
    train: int
    test: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train_per_class: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    statistics: str
    flips: bool
    fingerprint: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class Checked:
    """The verdict on a converted set: what makes it unusable (empty when it is sound), and what is odd about it."""

    name: str
    problem: str
    oddities: tuple[str, ...]
    fingerprint: str | None


@dataclass(frozen=True)
class Picture:
    """A picture that was written, its size in pixels, and how many images it shows."""

    path: Path
    width: int
    height: int
    images: int


def listing(project: Project) -> list[Listed]:
    """Every set of the table and every set of one's own that was converted, by name."""
    found = {entry.name: entry for entry in store.entries(project.paths.data)}
    rows = [Listed(name, converted=False) for name in DATASETS if name not in found]
    for entry in found.values():
        meta = entry.meta
        shape = tuple(meta["shape"]) if meta else None
        classes = len(meta["classes"]) if meta else None
        facts = (meta.get("train"), meta.get("test"), shape, classes)
        rows.append(Listed(entry.name, not entry.damage, *facts, entry.bytes, entry.path, entry.damage))
    return sorted(rows, key=lambda row: (row.name not in DATASETS, row.name))


def fetch(project: Project, name: str, source: Path | None, download: bool, again: bool) -> Info:
    """Make sure that a set is there, converted and sound; download it if need be, and enter it into the database.

    Raises:
        EspError: the name is unknown, or the set cannot be had or used.
    """
    dataset = store.fetch(name, project.paths.data, source or project.paths.raw, download, again)
    found = _describe(project, dataset)
    record_dataset(project.store, _record(project, found))
    return found


def enter(project: Project) -> int:
    """Enter every converted set that is sound; returns how many."""
    sound = [entry for entry in store.entries(project.paths.data) if not entry.damage]
    for entry in sound:
        meta, path = entry.meta, entry.path
        channels, height, width = meta["shape"]
        sizes = (channels, height, width, len(meta["classes"]), meta["train"], meta["test"])
        place = path.relative_to(project.home) if path.is_relative_to(project.home) else path
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        record_dataset(project.store, DatasetRecord(entry.name, meta["fingerprint"], *sizes, str(place), made))
    return len(sound)


def info(project: Project, name: str) -> Info:
    """Describe a set; one of one's own is converted first when it is new or changed.

    Raises:
        EspError: the name is unknown, or the set was not fetched or is damaged.
    """
    return _describe(project, store.load(name, project.paths.data, project.paths.raw))


def check(project: Project, names: Sequence[str]) -> list[Checked]:
    """Verify every byte of the named converted sets, or of all.

    Raises:
        EspError: a name is unknown, or its set was not converted.
    """
    if names:
        wanted = {store.canonical_name(name): store.location(name, project.paths.data) for name in names}
        for name, path in wanted.items():
            if not path.exists():
                store.check(name, project.paths.data)  # says what to do about it
    else:
        wanted = {entry.name: entry.path for entry in store.entries(project.paths.data)}
    return [_check(project, name) for name in wanted]


def _check(project: Project, name: str) -> Checked:
    damage = {entry.name: entry.damage for entry in store.entries(project.paths.data)}.get(name)
    if damage:
        return Checked(name, damage, (), None)
    try:
        report = store.check(name, project.paths.data)
    except EspError as error:
        return Checked(name, error.message, (), None)
    return Checked(name, "", tuple(_oddities(report)), report.dataset.fingerprint)


def in_space_of(project: Project, synthetic: Condensed) -> Dataset | None:
    """The data set of a synthetic set, in its whitened pixel space; None where plain constants lead back to pixels."""
    if synthetic.space == NORMALISED:
        return None
    dataset = store.load(synthetic.meta["dataset"], project.paths.data, project.paths.raw)
    return in_space(dataset, synthetic.space, project.paths.data)


def show(
    project: Project,
    name: str,
    output: Path | None,
    per_class: int,
    test: bool,
    seed: int | None,
    space: str = NORMALISED,
) -> Picture:
    """Write a picture with one row for each class.

    Args:
        project: the open project.
        name: of the data set.
        output: a PNG file; by default the set's name in the working folder.
        per_class: images in a row; rows of smaller classes stay shorter.
        test: whether to show test images in place of training images.
        seed: which images; None for the first ones.
        space: the pixel space to show them in; whitened ones as networks see them, grey for 0.

    Raises:
        EspError: the set cannot be loaded, or cannot be drawn.
    """
    path = output or Path(f"{slug(name)}.png")
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is not a PNG file", "give a name that ends in .png")
    dataset = store.load(name, project.paths.data, project.paths.raw)
    images, labels = (
        (dataset.test_images, dataset.test_labels) if test else (dataset.train_images, dataset.train_labels)
    )
    rows = [_chosen(labels == label, per_class, seed, label) for label in range(dataset.num_classes)]
    longest = max(len(row) for row in rows)
    shown = torch.full((len(rows), longest, *dataset.shape), 255, dtype=torch.uint8)
    dataset = in_space(dataset, space, project.paths.data)
    for index, row in enumerate(rows):
        chosen = images[row]
        shown[index, : len(row)] = chosen if space == NORMALISED else _seen(dataset, chosen)
    width, height = save_grid(path, shown.flatten(0, 1), longest, dataset.classes)
    return Picture(path.absolute(), width, height, sum(len(row) for row in rows))


def _seen(dataset: Dataset, images: torch.Tensor) -> torch.Tensor:
    """uint8 images as a network sees them: grey for 0, black and white at two and a half deviations of each image."""
    seen = dataset.normalise(images)
    scale = seen.flatten(1).std(1).clamp(min=1e-12)[:, None, None, None]
    return ((seen / (5 * scale) + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


def _chosen(members: torch.Tensor, count: int, seed: int | None, label: int) -> torch.Tensor:
    indices = members.nonzero().squeeze(1)
    if seed is not None:
        generator = Key(seed).fold("show", label).generator()
        indices = indices[torch.randperm(len(indices), generator=generator)]
    return indices[:count]


def _oddities(report: Report) -> list[str]:
    counts = (
        (report.repeated, "training images are copies of other training images"),
        (report.leaked, "test images are copies of training images"),
        (report.blank, "training images have one colour"),
    )
    found = [f"{count} {text}" for count, text in counts if count]
    low, high = report.train_per_class
    if high > 2 * low:
        found.append(f"classes have between {low} and {high} training images")
    return found


def _describe(project: Project, dataset: Dataset) -> Info:
    path = store.location(dataset.name, project.paths.data)
    counts = torch.bincount(dataset.train_labels)
    return Info(
        dataset.name,
        len(dataset.train_images),
        len(dataset.test_images),
        dataset.shape,
        dataset.classes,
        (int(counts.min()), int(counts.max())),
        dataset.mean,
        dataset.std,
        dataset.statistics,
        dataset.flips,
        dataset.fingerprint,
        path,
        path.stat().st_size,
    )


def _record(project: Project, found: Info) -> DatasetRecord:
    inside = found.path.is_relative_to(project.home)
    return DatasetRecord(
        name=found.name,
        fingerprint=found.fingerprint,
        channels=found.shape[0],
        height=found.shape[1],
        width=found.shape[2],
        classes=len(found.classes),
        train=found.train,
        test=found.test,
        path=str(found.path.relative_to(project.home) if inside else found.path),
        created=datetime.now(UTC),
    )
