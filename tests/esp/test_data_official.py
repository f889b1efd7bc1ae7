"""The official sets: small files in their formats, through the loaders that read the real ones."""

from __future__ import annotations

import hashlib
import http.server
import pickle  # noqa: TID251 (the official batches of CIFAR are pickles)
import shutil
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]

from esp.data import cifar, mnist, store, svhn, tinyimagenet
from esp.data.raw import validate
from esp.errors import DataError
from esp.vision import torchvision

NOWHERE = "http://127.0.0.1:9/nothing"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small_cifar100(tmp_path: Path) -> Any:
    """A loader that differs from torchvision's in the checksums and the address alone, and its files."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 4)):
        batch = {"data": random.integers(0, 256, (count, 3072), dtype=np.uint8), "fine_labels": [0, 1] * (count // 2)}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))
    official = torchvision().datasets.CIFAR100
    own = {
        "train_list": [["train", md5(folder / "train")]],
        "test_list": [["test", md5(folder / "test")]],
        "meta": {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")},
        "url": NOWHERE,
    }
    return type("CIFAR100", (official,), own)


def test_cifar_batches(tmp_path: Path, small_cifar100: Any) -> None:
    raw = cifar.read("cifar100", small_cifar100, tmp_path, False, cifar.CIFAR100)
    validate(raw, "cifar100")
    batch = pickle.loads((tmp_path / "cifar-100-python" / "train").read_bytes())
    assert torch.equal(raw.train_images, torch.from_numpy(batch["data"].reshape(12, 3, 32, 32)))
    assert raw.train_labels.tolist() == [0, 1] * 6
    assert (raw.classes, raw.flips) == (("apple", "bear"), True)
    assert raw.train_images.is_contiguous()
    inside = cifar.read("cifar100", small_cifar100, tmp_path / "cifar-100-python", False, cifar.CIFAR100)
    assert torch.equal(inside.test_images, raw.test_images)


def test_an_altered_batch_is_never_unpickled(tmp_path: Path, small_cifar100: Any) -> None:
    path = tmp_path / "cifar-100-python" / "test"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="not the official ones") as caught:
        cifar.read("cifar100", small_cifar100, tmp_path, False, cifar.CIFAR100)
    assert "espctl data fetch cifar100" in caught.value.hint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "tinyimagenet"])
def test_missing_files_are_answered_with_the_command_and_the_folder(tmp_path: Path, name: str) -> None:
    for attempt in (store.load, partial(store.fetch, download=False)):
        with pytest.raises(DataError) as caught:
            attempt(name, tmp_path / "cache", tmp_path / "raw")
        assert f"espctl data fetch {name}" in caught.value.hint
        assert str(tmp_path / "raw") in caught.value.hint
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_without_a_source_the_raw_files_belong_into_the_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        store.load("cifar10", tmp_path)
    assert str(tmp_path / "raw") in caught.value.hint


def test_a_failed_download_says_where_the_files_belong(tmp_path: Path, small_cifar100: Any) -> None:
    raw = tmp_path / "raw"
    with pytest.raises(DataError, match="cifar100 cannot be fetched") as caught:
        cifar.read("cifar100", small_cifar100, raw, True, cifar.CIFAR100)
    assert caught.value.hint == f"put cifar-100-python/ or cifar-100-python.tar.gz into {raw}"
    assert socket.getdefaulttimeout() is None


def test_a_failed_download_of_mnist(tmp_path: Path) -> None:
    loader = type("MNIST", (torchvision().datasets.MNIST,), {"mirrors": [NOWHERE]})
    with pytest.raises(DataError, match="mnist cannot be fetched") as caught:
        mnist.read("mnist", loader, tmp_path, True, mnist.MNIST, flips=False)
    assert "MNIST/raw" in caught.value.hint


def write_idx(folder: Path, counts: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    folder.mkdir(parents=True)
    random, images = np.random.default_rng(1), {}
    for part, count in counts.items():
        images[part] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = struct.pack(">iiii", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images[part].tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + labels.tobytes())
    return images


def test_idx_files(tmp_path: Path) -> None:
    images = write_idx(tmp_path / "FashionMNIST" / "raw", {"train": 30, "t10k": 10})
    loader = torchvision().datasets.FashionMNIST
    raw = mnist.read("fashion_mnist", loader, tmp_path, False, mnist.FASHION_MNIST, flips=True)
    validate(raw, "fashion_mnist")
    assert torch.equal(raw.train_images, torch.from_numpy(images["train"])[:, None])
    assert raw.classes[9] == "Ankle boot"


def test_fewer_images_than_the_official_set_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw", {"train": 30, "t10k": 10})
    with pytest.raises(DataError, match="30 training and 10 test images of 10 classes, the official set 60000, 10000"):
        store.load("mnist", tmp_path / "cache", tmp_path)


@pytest.mark.parametrize("keep", [3, 10, 500])
def test_a_truncated_idx_file(tmp_path: Path, keep: int) -> None:
    write_idx(tmp_path / "MNIST" / "raw", {"train": 30, "t10k": 10})
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="mnist"):
        store.load("mnist", tmp_path / "cache", tmp_path)


def test_svhn_files(tmp_path: Path) -> None:
    random, splits = np.random.default_rng(2), {}
    for name, count in (("train", 20), ("test", 10)):
        pixels = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(
            tmp_path / f"{name}_32x32.mat", {"X": pixels, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]}
        )
        splits[name] = ["", f"{name}_32x32.mat", md5(tmp_path / f"{name}_32x32.mat")]
    loader = type("SVHN", (torchvision().datasets.SVHN,), {"split_list": splits})
    raw = svhn.read(loader, tmp_path, False)
    validate(raw, "svhn")
    assert torch.equal(raw.test_images[4], torch.from_numpy(pixels[:, :, :, 4].copy()).permute(2, 0, 1))
    assert raw.train_labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert not raw.flips


def tiny_tree(folder: Path) -> Path:
    """Two classes of the tree of Tiny ImageNet; the annotations are not in the order of the classes."""
    root = folder / tinyimagenet.FOLDER
    for number, name in enumerate(("n02", "n01")):
        (root / "train" / name / "images").mkdir(parents=True)
        for index in range(3):
            colour = (200 * number, 10 * index, 0)
            Image.new("RGB", (64, 64), colour).save(root / "train" / name / "images" / f"{name}_{index}.JPEG")
    Image.new("L", (64, 64), 99).save(root / "train" / "n01" / "images" / "n01_3.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (64, 64), (0, 0, 80 * index)).save(root / "val" / "images" / f"val_{index}.JPEG")
    lines = [f"val_{index}.JPEG\t{name}\t0\t0\t63\t63" for index, name in ((2, "n02"), (0, "n01"), (1, "n02"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_tree_of_tiny_imagenet(tmp_path: Path) -> None:
    raw = tinyimagenet.read(tiny_tree(tmp_path))
    validate(raw, "tinyimagenet")
    assert raw.classes == ("n01", "n02")
    assert raw.train_labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert raw.test_labels.tolist() == [1, 0, 1]
    assert raw.train_images.shape == (7, 3, 64, 64)
    assert int(raw.train_images[0, 0].float().mean()) in range(198, 203)  # n01 is the red one
    assert [round(float(image[2].float().mean()) / 80) for image in raw.test_images] == [2, 0, 1]


def test_a_part_of_tiny_imagenet_is_refused(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    for source in (tmp_path, root):
        with pytest.raises(DataError, match="7 training and 3 test images of 2 classes"):
            store.load("tinyimagenet", tmp_path / "cache", source)


def test_tiny_imagenet_without_its_parts(tmp_path: Path) -> None:
    root = tiny_tree(tmp_path)
    annotations = root / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("val_0.JPEG\tn01", "val_0.JPEG\tn09"))
    with pytest.raises(DataError, match="line 2: no known class"):
        tinyimagenet.read(root)
    annotations.write_text(text)
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG is not a readable image \(No such file"):
        tinyimagenet.read(root)
    annotations.unlink()
    with pytest.raises(DataError, match=r"there is no .*val_annotations\.txt"):
        tinyimagenet.read(root)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_archive_is_downloaded_checked_and_unpacked(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    root = tiny_tree(tmp_path / "made")
    archive = Path(shutil.make_archive(str(folder / tinyimagenet.FOLDER), "zip", root.parent, root.name))
    assert zipfile.is_zipfile(archive)
    url = f"{address}/{archive.name}"
    with pytest.raises(DataError, match="tinyimagenet cannot be fetched"):
        tinyimagenet.fetch_archive(tmp_path / "altered", url, "0" * 32)
    assert not (tmp_path / "altered" / tinyimagenet.FOLDER).exists()
    tinyimagenet.fetch_archive(tmp_path / "raw", url, md5(archive))
    assert len(tinyimagenet.read(tmp_path / "raw" / tinyimagenet.FOLDER).train_images) == 7
    with pytest.raises(DataError, match=r"cannot be fetched .*404"):
        tinyimagenet.fetch_archive(tmp_path / "gone", f"{address}/nothing.zip", md5(archive))
