from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esp.data import store
from esp.errors import DataError


def arrays() -> dict[str, Any]:
    random = np.random.default_rng(5)
    return {
        "train_images": random.integers(0, 256, (9, 3, 5, 4), dtype=np.uint8),
        "train_labels": np.arange(9) % 3,
        "test_images": random.integers(0, 256, (3, 3, 5, 4), dtype=np.uint8),
        "test_labels": np.arange(3),
    }


def write(path: Path, values: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    if path.suffix == ".npz":
        np.savez(path, **values)
    else:
        tensors = {name: torch.as_tensor(value).contiguous() for name, value in values.items()}
        save_file(tensors, path, metadata=metadata)
    return f"tensors:{path}"


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_both_formats_hold_the_same_set(tmp_path: Path, suffix: str) -> None:
    values = arrays()
    dataset = store.load(write(tmp_path / f"a.{suffix}", values), tmp_path / "cache")
    assert torch.equal(dataset.train_images, torch.from_numpy(values["train_images"]))
    assert dataset.train_labels.tolist() == values["train_labels"].tolist()
    assert (dataset.classes, dataset.shape, dataset.flips) == (("0", "1", "2"), (3, 5, 4), False)


def test_the_format_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    names = [write(tmp_path / f"a.{suffix}", arrays()) for suffix in ("npz", "safetensors")]
    assert len({store.load(name, tmp_path / "cache").fingerprint for name in names}) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floating_point_images_are_rounded_to_256_values(tmp_path: Path, dtype: str) -> None:
    values = arrays()
    expected = values["train_images"].copy()
    for name in ("train_images", "test_images"):
        values[name] = (values[name] / 255).astype(dtype)
    dataset = store.load(write(tmp_path / "a.npz", values), tmp_path / "cache")
    assert torch.equal(dataset.train_images, torch.from_numpy(expected))


def test_bfloat16_images(tmp_path: Path) -> None:
    values = arrays()
    values["train_images"] = torch.ones(9, 3, 5, 4, dtype=torch.bfloat16) / 2
    dataset = store.load(write(tmp_path / "a.safetensors", values), tmp_path / "cache")
    assert set(dataset.train_images.flatten().tolist()) == {128}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", ">i8", "uint64"])
def test_labels_of_any_integer_type(tmp_path: Path, dtype: str) -> None:
    values = arrays() | {"train_labels": (np.arange(9) % 3).astype(dtype)}
    dataset = store.load(write(tmp_path / "a.npz", values), tmp_path / "cache")
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.train_labels.tolist() == [0, 1, 2] * 3


def test_metadata_name_the_classes_and_allow_flips(tmp_path: Path) -> None:
    metadata = {"classes": json.dumps(["ant", "bee", "cow"]), "flips": "true"}
    dataset = store.load(write(tmp_path / "a.safetensors", arrays(), metadata), tmp_path / "cache")
    assert (dataset.classes, dataset.flips) == (("ant", "bee", "cow"), True)


def test_a_changed_file_is_converted_anew(tmp_path: Path) -> None:
    name = write(tmp_path / "a.npz", arrays())
    first = store.load(name, tmp_path / "cache")
    write(tmp_path / "a.npz", arrays() | {"train_labels": (np.arange(9) + 1) % 3})
    assert store.load(name, tmp_path / "cache").fingerprint != first.fingerprint
    assert len(store.entries(tmp_path / "cache")) == 1


FLOATS = arrays()["train_images"] / 255
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "channels last": ({"train_images": np.zeros((9, 5, 4, 3), np.uint8)}, r"train_images has its channels last"),
    "three axes": ({"train_images": np.zeros((9, 5, 4), np.uint8)}, r"train_images has 3 axes"),
    "integers": ({"test_images": np.zeros((3, 3, 5, 4), np.int32)}, r"test_images has the type torch.int32"),
    "booleans": ({"test_images": np.zeros((3, 3, 5, 4), bool)}, r"test_images has the type"),
    "above one": ({"train_images": FLOATS * 255}, r"train_images goes from .* not from 0 to 1"),
    "below zero": ({"train_images": FLOATS - 0.5}, r"train_images goes from -0.5"),
    "not a number": ({"train_images": FLOATS * np.nan}, r"train_images goes from nan"),
    "empty": ({"test_images": np.zeros((0, 3, 5, 4), np.uint8), "test_labels": np.zeros(0, int)}, r"is empty"),
    "other size": ({"test_images": np.zeros((3, 3, 4, 5), np.uint8)}, r"images are 3x5x4 but test images are 3x4x5"),
    "float labels": ({"train_labels": np.arange(9) / 3}, r"train_labels has the type torch.float64"),
    "one-hot labels": ({"train_labels": np.eye(9, dtype=np.int64)}, r"train_labels has 2 axes"),
    "too few labels": ({"train_labels": np.arange(8) % 3}, r"9 train images but 8 labels"),
    "gap": ({"train_labels": np.array([0, 1, 3] * 3)}, r"from 0 to 3, and 2 is not among them"),
    "from one": ({"train_labels": np.arange(9) % 3 + 1}, r"from 1 to 3, and 0 is not among them"),
    "negative": ({"train_labels": np.arange(9) % 3 - 1}, r"and 2 is not among them"),
    "unknown in test": ({"test_labels": np.array([0, 1, 5])}, r"test labels go from 0 to 5, expected 0 to 2"),
    "missing in test": ({"test_labels": np.array([0, 1, 1])}, r"class '2' has no test image"),
    "one class": ({"train_labels": np.zeros(9, int), "test_labels": np.zeros(3, int)}, r"has 1 classes, at least 2"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_that_make_no_sense(tmp_path: Path, case: str, suffix: str) -> None:
    changed, message = BAD[case]
    name = write(tmp_path / f"a.{suffix}", arrays() | changed)
    with pytest.raises(DataError, match=message) as caught:
        store.load(name, tmp_path / "cache")
    assert caught.value.hint
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "test_labels"])
def test_a_missing_array_is_named(tmp_path: Path, suffix: str, key: str) -> None:
    values = arrays()
    del values[key]
    with pytest.raises(DataError, match=f"has no array '{key}'"):
        store.load(write(tmp_path / f"a.{suffix}", values), tmp_path / "cache")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": "ant, bee, cow"}, "'classes' is not a list"),
        ({"classes": "[1, 2, 3]"}, "'classes' is not a list"),
        ({"classes": '["ant", "bee", "ant"]'}, "class name 'ant' appears twice"),
        ({"classes": '["ant", "bee"]'}, "labels go from 0 to 2, expected 0 to 1"),
        ({"classes": '["ant", "bee", "cow", "dog"]'}, "class 'dog' has no train image"),
        ({"flips": "maybe"}, "'flips' is neither true nor false"),
    ],
)
def test_metadata_that_make_no_sense(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        store.load(write(tmp_path / "a.safetensors", arrays(), metadata), tmp_path / "cache")


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    values = arrays() | {"train_labels": np.array([{"label": index} for index in range(9)], dtype=object)}
    with pytest.raises(DataError, match="not a readable npz file"):
        store.load(write(tmp_path / "a.npz", values), tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense", b"\xff" * 100])
def test_a_file_of_nonsense(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"not a readable {suffix} file"):
        store.load(f"tensors:{path}", tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    name = write(path, arrays())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=f"not a readable {suffix} file"):
        store.load(name, tmp_path / "cache")


def test_a_single_array_is_no_set(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match="is a single array"):
        store.load(f"tensors:{tmp_path / 'a.npz'}", tmp_path / "cache")


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        store.load(f"tensors:{tmp_path / 'a.npz'}", tmp_path)
    (tmp_path / "a.pt").touch()
    with pytest.raises(DataError, match=r"neither a \.safetensors nor a \.npz"):
        store.load(f"tensors:{tmp_path / 'a.pt'}", tmp_path)
