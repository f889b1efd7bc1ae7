from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from esp import artifact
from esp.data import DATASETS, check_name, store
from esp.errors import ArtifactError, DataError, EspError, InputError, UnknownNameError

CONVERTER = """
import torch
from esp.data.raw import Raw
from esp.errors import DataError

def good(source, download):
    images = torch.arange(32, dtype=torch.uint8).reshape(8, 1, 2, 2)
    labels = torch.arange(8) % 2
    return Raw(images, labels, images[:4], labels[:4], ("even", "odd"), flips=True, constants=((0.5,), (0.25,)))

def broken(source, download):
    return [][1]

def wrong(source, download):
    return "a set"

not_callable = 3
"""


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_the_table_is_readable_without_torch() -> None:
    code = (
        "import sys, esp.data; assert 'cifar10' in esp.data.DATASETS; assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [*DATASETS, "folder:x", "tensors:x", "package.module:function"])
def test_names_that_have_the_right_form(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar11", "did you mean 'cifar10'?"), ("foldr:x", "did you mean 'folder:PATH'?"), ("", "known: ")],
)
def test_an_unknown_name_is_answered_with_the_closest(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        check_name(name)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["folder:", "tensors:", ":x"])
def test_an_incomplete_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="incomplete"):
        check_name(name)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.canonical_name("folder:pets/../birds") == f"folder:{tmp_path.resolve() / 'birds'}"
    assert store.canonical_name("digits") == "digits"


def test_first_use_converts_and_later_use_does_not(tmp_path: Path) -> None:
    first = store.load("digits", tmp_path)
    path = store.location("digits", tmp_path)
    written = path.stat().st_mtime_ns
    second = store.load("digits", tmp_path)
    assert path.stat().st_mtime_ns == written
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.train_images, first.train_images)
    assert store.fetch("digits", tmp_path).fingerprint == first.fingerprint
    assert path.stat().st_mtime_ns == written
    store.fetch("digits", tmp_path, again=True)
    assert path.stat().st_mtime_ns > written


@pytest.mark.parametrize("offset", [20, -1, -100_000])
def test_a_flipped_bit_is_found_and_fetch_repairs_it(tmp_path: Path, offset: int) -> None:
    store.load("digits", tmp_path)
    path = store.location("digits", tmp_path)
    flip_byte(path, offset)
    with pytest.raises(ArtifactError) as caught:
        store.load("digits", tmp_path)
    assert caught.value.hint == "run: espctl data fetch digits, which makes it again"
    with pytest.raises(ArtifactError):
        store.check("digits", tmp_path)
    store.fetch("digits", tmp_path)
    assert store.load("digits", tmp_path).num_classes == 10


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    store.load("digits", tmp_path)
    path = store.location("digits", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError):
        store.load("digits", tmp_path)
    [entry] = store.entries(tmp_path)
    assert entry.name == "digits"
    assert entry.damage
    assert store.cached(tmp_path) == []


def test_a_file_of_another_set_in_its_place_is_refused(tmp_path: Path) -> None:
    store.load("digits", tmp_path)
    store.location("digits", tmp_path).rename(store.location("mnist", tmp_path))
    with pytest.raises(ArtifactError, match="does not hold the data set mnist"):
        store.load("mnist", tmp_path)


def test_another_artifact_in_the_cache_is_no_data_set(tmp_path: Path) -> None:
    artifact.save(tmp_path / "theta.safetensors", {"theta": torch.zeros(3)}, {"kind": "expert"})
    [entry] = store.entries(tmp_path)
    assert "holds no data set" in entry.damage


def test_entries_describe_what_is_there(tmp_path: Path) -> None:
    assert store.entries(tmp_path / "nothing") == []
    store.load("digits", tmp_path)
    [entry] = store.entries(tmp_path)
    assert entry.path == tmp_path / "digits.safetensors"
    assert entry.bytes == entry.path.stat().st_size
    assert (entry.meta["shape"], entry.meta["train"], entry.meta["test"]) == ([1, 16, 16], 1442, 355)
    assert store.cached(tmp_path) == ["digits"]


def test_check_of_a_set_that_was_never_converted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        store.check("cifar10", tmp_path)
    assert caught.value.hint == "run: espctl data fetch cifar10"


def test_check_counts_copies_leaks_and_blank_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
    images[7] = images[3]
    images[9] = 50
    labels = np.arange(20) % 2
    labels[0] = 1
    test = images[[1, 2, 5]].copy()
    test[2, 0, 0, 0] += 1
    file = tmp_path / "set.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=test, test_labels=[0, 1, 1])
    store.load(f"tensors:{file}", tmp_path / "cache")
    report = store.check(f"tensors:{file}", tmp_path / "cache")
    assert (report.repeated, report.leaked, report.blank) == (1, 2, 1)
    assert (report.train_per_class, report.test_per_class) == ((9, 11), (1, 2))


def test_digits_have_no_oddities(tmp_path: Path) -> None:
    store.load("digits", tmp_path)
    report = store.check("digits", tmp_path)
    assert (report.repeated, report.leaked, report.blank) == (0, 0, 0)
    assert report.train_per_class == (140, 147)


@pytest.fixture
def converters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "package_of_mine").mkdir()
    path = tmp_path / "package_of_mine" / "sets.py"
    path.write_text(CONVERTER)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_a_converter_of_ones_own(tmp_path: Path, converters: Path) -> None:
    name = "package_of_mine.sets:good"
    dataset = store.load(name, tmp_path / "cache")
    assert (dataset.name, dataset.classes, dataset.mean, dataset.statistics) == (name, ("even", "odd"), (0.5,), "field")
    path = store.location(name, tmp_path / "cache")
    before = path.stat().st_mtime_ns
    store.load(name, tmp_path / "cache")
    assert path.stat().st_mtime_ns == before
    time.sleep(0.01)
    converters.touch()
    store.load(name, tmp_path / "cache")
    assert path.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "failed: IndexError"),
        ("wrong", "returned str"),
        ("not_callable", "is not a function"),
        ("absent", "cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("converters")
def test_a_converter_that_cannot_be_used(tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(EspError, match=message):
        store.load(f"package_of_mine.sets:{function}", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
