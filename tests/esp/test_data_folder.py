from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esp.data import store
from esp.errors import ArtifactError, DataError


def paint(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object) -> None:
    """A picture whose pixels all differ, starting from `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = (np.arange(size[1] * size[0] * channels) * 3 + value) % 256
    array = pixels.astype(np.uint8).reshape(size[1], size[0], channels)
    Image.fromarray(array[:, :, 0] if channels == 1 else array, mode=None).save(path, **options)  # type: ignore[arg-type]


def oversized(path: Path, side: int) -> None:
    """The header of a PNG of `side` x `side` pixels, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                paint(root / split / name / f"{index}.png", 40 * label + 5 * index + (100 if split == "test" else 0))
    return root


def test_a_tree_of_colour_images(tmp_path: Path, pets: Path) -> None:
    dataset = store.load(f"folder:{pets}", tmp_path / "cache")
    assert (dataset.classes, dataset.shape) == (("cat", "dog"), (3, 4, 6))
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_labels.tolist() == [0, 0, 1, 1]
    pixels = np.asarray(Image.open(pets / "train" / "dog" / "1.png"))
    assert torch.equal(dataset.train_images[4], torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    assert (dataset.statistics, dataset.flips) == ("computed", False)


def test_all_gray_files_give_one_channel_and_a_mixture_gives_three(tmp_path: Path, pets: Path) -> None:
    for path in pets.rglob("*.png"):
        paint(path, 9, mode="L")
    assert store.load(f"folder:{pets}", tmp_path / "cache").shape == (1, 4, 6)
    paint(pets / "train" / "cat" / "0.png", 9)
    mixed = store.load(f"folder:{pets}", tmp_path / "cache")
    assert mixed.shape == (3, 4, 6)
    assert torch.equal(mixed.train_images[1, 0], mixed.train_images[1, 2])


def test_other_formats_and_modes_are_read(tmp_path: Path, pets: Path) -> None:
    folder = pets / "train" / "cat"
    paint(folder / "a.JPG", 1)
    paint(folder / "b.webp", 2)
    paint(folder / "c.bmp", 3)
    paint(folder / "d.png", 4, mode="RGBA")
    Image.new("P", (6, 4)).save(folder / "e.png", transparency=b"\0\1")
    Image.new("1", (6, 4), 1).save(folder / "f.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    (pets / "train" / ".cache").mkdir()
    dataset = store.load(f"folder:{pets}", tmp_path / "cache")
    assert torch.bincount(dataset.train_labels).tolist() == [9, 3]
    assert set(dataset.train_images[8].flatten().tolist()) == {255}


def test_a_file_can_allow_flips(tmp_path: Path, pets: Path) -> None:
    assert not store.load(f"folder:{pets}", tmp_path / "cache").flips
    (pets / "dataset.json").write_text('{"flips": true}')
    assert store.load(f"folder:{pets}", tmp_path / "cache").flips
    (pets / "dataset.json").write_text('{"flip": true}')
    with pytest.raises(DataError, match=r"dataset\.json is not understood"):
        store.load(f"folder:{pets}", tmp_path / "cache")
    (pets / "dataset.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        store.load(f"folder:{pets}", tmp_path / "cache")


def test_a_changed_tree_is_converted_anew(tmp_path: Path, pets: Path) -> None:
    name, cache = f"folder:{pets}", tmp_path / "cache"
    first = store.load(name, cache)
    file = pets / "train" / "cat" / "0.png"
    size = file.stat().st_size
    paint(file, 33)
    os.truncate(file, max(size, file.stat().st_size))
    second = store.load(name, cache)
    paint(pets / "test" / "dog" / "new.png", 77)
    third = store.load(name, cache)
    (pets / "test" / "dog" / "new.png").unlink()
    fourth = store.load(name, cache)
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    assert fourth.fingerprint == second.fingerprint
    assert len(store.entries(cache)) == 1


def test_two_trees_of_one_name_have_two_files(tmp_path: Path, pets: Path) -> None:
    other = tmp_path / "other" / "pets"
    other.parent.mkdir()
    pets.rename(other)
    store.load(f"folder:{other}", tmp_path / "cache")
    assert store.location(f"folder:{other}", tmp_path) != store.location(f"folder:{pets}", tmp_path)


def _one_class(root: Path) -> None:
    for split in ("train", "test"):
        for file in (root / split / "dog").iterdir():
            file.unlink()
        (root / split / "dog").rmdir()


def _no_test(root: Path) -> None:
    (root / "test").rename(root / "validation")


def _empty_class(root: Path) -> None:
    (root / "train" / "emu").mkdir()


def _missing_in_test(root: Path) -> None:
    paint(root / "train" / "emu" / "0.png", 0)


def _missing_in_train(root: Path) -> None:
    paint(root / "test" / "emu" / "0.png", 0)


def _text_file(root: Path) -> None:
    (root / "train" / "dog" / "1.png").write_text("this is no picture")


def _truncated(root: Path) -> None:
    path = root / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def _other_size(root: Path) -> None:
    paint(root / "test" / "dog" / "1.png", 0, size=(4, 6))


def _deep(root: Path) -> None:
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000).save(root / "train" / "dog" / "1.png")


def _bomb(root: Path) -> None:
    oversized(root / "train" / "dog" / "1.png", 30_000)


def _half_a_bomb(root: Path) -> None:
    oversized(root / "train" / "dog" / "1.png", 10_000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_one_class, r"train holds 1 class folders, at least 2 are needed"),
        (_no_test, r"there is no folder .*test"),
        (_empty_class, r"train.emu holds no image"),
        (_missing_in_test, r"class 'emu' is in .*train but not in .*test"),
        (_missing_in_train, r"class 'emu' is in .*test but not in .*train"),
        (_text_file, r"train.dog.1\.png is not a readable image"),
        (_truncated, r"test.dog.1\.png is not a readable image"),
        (_other_size, r"train.cat.0\.png has 6x4 pixels but .*test.dog.1\.png has 4x6"),
        (_deep, r"train.dog.1\.png has more than 8 bits"),
        (_bomb, r"train.dog.1\.png has too many pixels"),
        (_half_a_bomb, r"train.dog.1\.png has too many pixels"),
    ],
)
def test_a_bad_tree_is_refused_with_the_file_named(
    tmp_path: Path, pets: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(pets)
    with pytest.raises(DataError, match=message) as caught:
        store.load(f"folder:{pets}", tmp_path / "cache")
    assert caught.value.hint
    assert not list((tmp_path / "cache").glob("*"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        store.load(f"folder:{tmp_path / 'nothing'}", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="there is no folder"):
        store.load(f"folder:{tmp_path / 'file'}", tmp_path)
