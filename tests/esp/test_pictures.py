from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esp.errors import InputError
from esp.pictures import grid, save_grid


def images(count: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    values = torch.arange(count * channels * side * side) % 251
    return values.to(torch.uint8).reshape(count, channels, side, side)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_stands_in_its_cell(channels: int) -> None:
    shown = images(5, channels)
    picture = np.asarray(grid(shown, columns=3, scale=2))
    pixels = torch.from_numpy(picture.copy()).reshape(*picture.shape[:2], channels)
    assert pixels.shape[:2] == (2 * (8 + 1) + 1, 3 * (8 + 1) + 1)
    for index in range(5):
        top, left = 1 + 9 * (index // 3), 1 + 9 * (index % 3)
        cell = pixels[top : top + 8, left : left + 8].permute(2, 0, 1)
        assert torch.equal(cell[:, ::2, ::2], shown[index])
        assert torch.equal(cell[:, 1::2, 1::2], shown[index])
    assert bool((pixels[10:, 19:] == 255).all())  # the sixth cell is empty
    assert bool((pixels[::9] == 255).all())  # gutters


@pytest.mark.parametrize(
    ("count", "columns", "side", "least"), [(10, 1, 32, 300), (100, 10, 32, 600), (20, 2, 8, 600), (4, 4, 400, 1600)]
)
def test_small_images_are_enlarged(tmp_path: Path, count: int, columns: int, side: int, least: int) -> None:
    path = tmp_path / "folder" / "grid.png"
    size = save_grid(path, images(count, 3, side), columns)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", size)
    assert least <= size[0] < least + 200
    assert size[1] < 4200


def test_labels_stand_left_of_their_rows(tmp_path: Path) -> None:
    shown = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    plain = save_grid(tmp_path / "plain.png", shown, 2)
    labelled = save_grid(tmp_path / "labelled.png", shown, 2, ["cat", "dog"])
    assert labelled[1] == plain[1]
    assert labelled[0] > plain[0]
    pixels = np.asarray(Image.open(tmp_path / "labelled.png"))
    left = pixels[:, : labelled[0] - plain[0]]
    half = left.shape[0] // 2
    assert left[:half].min() < 100
    assert left[half:].min() < 100
    assert not np.array_equal(left[:half], left[-half:])


def test_strange_labels_are_drawn(tmp_path: Path) -> None:
    labels = ["x" * 200, "", "日本\x1b[31m"]
    assert save_grid(tmp_path / "grid.png", images(3), 1, labels)[0] < 1200


@pytest.mark.parametrize(
    ("shown", "columns", "labels", "message"),
    [
        (images(4).float(), 2, None, "cannot draw a torch.float32 tensor"),
        (images(4)[0], 2, None, "of shape"),
        (images(0), 2, None, "of shape"),
        (images(4, channels=2), 2, None, "images of 2 channels"),
        (images(4), 0, None, "cannot draw 0 columns"),
        (images(4), 2, ["a"], "1 labels for 2 rows"),
        (torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(3, 1, 7000, 7000), 1, None, "too large"),
    ],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, shown: torch.Tensor, columns: int, labels: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        save_grid(tmp_path / "grid.png", shown, columns, labels)
    assert not list(tmp_path.iterdir())
