"""Data sets on disk: converted once into a file that verifies itself, and mapped into memory ever after.

Every set becomes one artifact in the cache folder, whatever it was made from. Loading it reads each byte once, to check
its digest; the tensors are the file's own pages.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esp import artifact, registry
from esp.data import DATASETS, PREFIXES, check_name
from esp.data.dataset import Dataset, fingerprint
from esp.data.health import Report, examine
from esp.data.raw import TENSORS, Raw, statistics, validate
from esp.errors import ArtifactError, DataError, EspError, InputError
from esp.files import sha256

LAYOUT = 1
"""Goes up when the same source is converted into something else; files of an older layout are made again."""

_HEADER = {
    **dict.fromkeys(("name", "stamp", "statistics", "fingerprint"), str),
    **dict.fromkeys(("classes", "mean", "std", "shape"), list),
    **dict.fromkeys(("train", "test"), int),
    "flips": bool,
}


@dataclass(frozen=True)
class Entry:
    """One converted set in a cache folder, as its header describes it.

    Args:
        name: canonical name; the file's stem when the header is damaged.
        path: the artifact.
        bytes: its size.
        meta: the header: `shape`, `train`, `test`, `classes`, `fingerprint`, ...; empty when damaged.
        damage: why the file cannot be used; empty when the header is whole.
    """

    name: str
    path: Path
    bytes: int
    meta: dict[str, Any]
    damage: str = ""


@dataclass(frozen=True)
class _Origin:
    """Where a set comes from: its canonical name, its file, what changes with its source, and how to make it."""

    name: str
    path: Path
    stamp: str
    convert: Callable[[Path, bool], Raw]


def canonical_name(name: str) -> str:
    """`name` with the path of `folder:` or `tensors:` made absolute.

    Raises:
        UnknownNameError: there is no such data set; the hint names the closest.
        InputError: `name` is incomplete.
    """
    check_name(name)
    prefix, _, rest = name.partition(":")
    return f"{prefix}:{Path(rest).expanduser().resolve()}" if prefix in PREFIXES else name


def location(name: str, cache: Path) -> Path:
    """The file in `cache` that holds the set `name`, whether it exists or not."""
    name = canonical_name(name)
    if name in DATASETS:
        return cache / f"{name}.safetensors"
    kind, _, _ = name.partition(":")
    return cache / f"{kind if kind in PREFIXES else 'own'}-{sha256(name)[:12]}.safetensors"


def load(name: str, cache: Path, source: Path | None = None) -> Dataset:
    """The set `name`: converted on first use, mapped from the cache afterwards.

    A set of one's own is converted again when its source changed since.

    Args:
        name: see `esp.data`.
        cache: the folder of converted sets; made when missing.
        source: the folder that holds the raw files of an official set; `cache/raw` by default.

    Raises:
        UnknownNameError, InputError: the name is unknown or incomplete.
        DataError: the raw files are missing, damaged, or make no sense as a set.
        ArtifactError: the converted file is damaged.
    """
    origin = _origin(name, cache)
    if not _is_current(origin):
        _convert(origin, source or cache / "raw", download=False)
    return _open(origin.path, origin.name)


def fetch(name: str, cache: Path, source: Path | None = None, download: bool = True, again: bool = False) -> Dataset:
    """Like `load`, but downloads what is missing, and replaces a damaged file.

    Args:
        name: see `esp.data`.
        cache: the folder of converted sets.
        source: where raw files lie, or are put.
        download: whether the network may be used.
        again: whether to convert even when a good file is there.

    Raises:
        UnknownNameError, InputError: the name is unknown or incomplete.
        DataError: the raw files cannot be had or read; the hint says where to put them.
    """
    origin = _origin(name, cache)
    try:
        if not again and _is_current(origin):
            return _open(origin.path, origin.name)
    except ArtifactError:
        pass  # damaged, so it is made again
    _convert(origin, source or cache / "raw", download)
    return _open(origin.path, origin.name)


def check(name: str, cache: Path) -> Report:
    """Verify a converted set (digests, fingerprint, shapes, labels) and count what looks odd in it.

    Raises:
        UnknownNameError, InputError: the name is unknown or incomplete.
        DataError: the set was not converted yet, or its content makes no sense.
        ArtifactError: the file is damaged.
    """
    path, canonical = location(name, cache), canonical_name(name)
    if not path.exists():
        raise DataError(f"{canonical} is not in {cache}", f"run: espctl data fetch {shlex.quote(name)}")
    dataset = _open(path, canonical)
    validate(_as_raw(dataset), canonical)
    if fingerprint(dataset) != dataset.fingerprint:
        raise ArtifactError(f"the fingerprint in {path} is not that of its content", _again(name))
    return examine(dataset)


def entries(cache: Path) -> list[Entry]:
    """The converted sets in a cache folder, by name and with the damaged ones; reads headers only."""
    return sorted(map(_entry, cache.glob("*.safetensors")), key=lambda entry: entry.name)


def cached(cache: Path) -> list[str]:
    """Names of the sets in a cache folder whose headers are whole."""
    return [entry.name for entry in entries(cache) if not entry.damage]


def _entry(path: Path) -> Entry:
    size = path.stat().st_size
    try:
        meta, _ = artifact.read_meta(path)
    except ArtifactError as error:
        return Entry(path.stem, path, size, {}, error.message)
    if meta.get("kind") != "dataset":
        return Entry(path.stem, path, size, {}, f"{path} holds no data set")
    try:
        artifact.require(path, meta, _HEADER)
    except ArtifactError as error:
        return Entry(path.stem, path, size, {}, error.message)
    return Entry(meta["name"], path, size, meta)


def _origin(name: str, cache: Path) -> _Origin:
    canonical, path = canonical_name(name), location(name, cache)
    prefix, _, rest = canonical.partition(":")
    if prefix in PREFIXES:
        module, files = importlib.import_module(f"esp.data.{prefix}"), Path(rest)
        stamp = f"{LAYOUT}:{module.stamp(files)}"
        return _Origin(canonical, path, stamp, lambda _source, _download: module.convert(files))
    convert = registry.resolve(DATASETS, "data set", canonical)
    if canonical in DATASETS:
        return _Origin(canonical, path, f"{LAYOUT}", convert)
    if not inspect.isfunction(convert):
        raise InputError(
            f"data set {name!r} is not a function", "name a function (source, download) -> esp.data.raw.Raw"
        )
    state = Path(inspect.getfile(convert)).stat()
    return _Origin(canonical, path, f"{LAYOUT}:{state.st_size}:{state.st_mtime_ns}", _guarded(canonical, convert))


def _guarded(name: str, convert: Callable[[Path, bool], Any]) -> Callable[[Path, bool], Raw]:
    """A converter of somebody else's, whose failures become errors that name it."""

    def converted(source: Path, download: bool) -> Raw:
        try:
            raw = convert(source, download)
        except EspError:
            raise
        except Exception as error:
            raise DataError(f"{name} failed: {type(error).__name__}: {error}", "repair the converter") from error
        if not isinstance(raw, Raw):
            raise DataError(f"{name} returned {type(raw).__name__}", "return an esp.data.raw.Raw")
        return raw

    return converted


def _is_current(origin: _Origin) -> bool:
    """Whether the converted file is there and was made of the source as it is now."""
    if not origin.path.exists():
        return False
    with _remedied(origin.name):
        meta, _ = artifact.read_meta(origin.path)
    return bool(meta.get("stamp") == origin.stamp)


def _convert(origin: _Origin, source: Path, download: bool) -> None:
    raw = origin.convert(source, download)
    validate(raw, origin.name)
    mean, std = raw.constants or statistics(raw.train_images)
    meta = {
        "kind": "dataset",
        "name": origin.name,
        "stamp": origin.stamp,
        "classes": list(raw.classes),
        "mean": list(mean),
        "std": list(std),
        "statistics": "field" if raw.constants else "computed",
        "flips": raw.flips,
        "fingerprint": fingerprint(raw),
        "shape": list(raw.train_images.shape[1:]),
        "train": len(raw.train_images),
        "test": len(raw.test_images),
    }
    artifact.save(origin.path, raw.tensors(), meta)


def _open(path: Path, name: str) -> Dataset:
    """Map a converted file and verify its digests."""
    with _remedied(name):
        held = artifact.load(path)
    meta = held.meta
    if meta.get("kind") != "dataset" or meta.get("name") != name:
        raise ArtifactError(f"{path} does not hold the data set {name}", _again(name))
    with _remedied(name):
        artifact.require(path, meta, _HEADER)
        artifact.require(path, held.tensors, dict.fromkeys(TENSORS, torch.Tensor))
    made = Dataset(
        name=name,
        train_images=held.tensors["train_images"],
        train_labels=held.tensors["train_labels"],
        test_images=held.tensors["test_images"],
        test_labels=held.tensors["test_labels"],
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        statistics=meta["statistics"],
        flips=meta["flips"],
        fingerprint=meta["fingerprint"],
    )
    validate(_as_raw(made), str(path))
    return made


@contextmanager
def _remedied(name: str) -> Iterator[None]:
    """Point a damaged file's error at the command that makes the file again."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(error.message, _again(name)) from error


def _as_raw(dataset: Dataset) -> Raw:
    tensors = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    return Raw(*tensors, dataset.classes, dataset.flips)


def _again(name: str) -> str:
    return f"run: espctl data fetch {shlex.quote(name)}, which makes it again"
