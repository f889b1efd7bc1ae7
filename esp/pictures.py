"""Pictures of image tensors, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from esp import files
from esp.errors import InputError

_BACKGROUND = 255
_INK = 0
_MARGIN = 8
_TALL = 4_000
"""Pictures are not enlarged beyond this height in pixels."""
_MAX_SIDE = 20_000
"""A PNG beyond this many pixels to a side is of no use to any viewer."""


def grid(images: Tensor, columns: int, labels: Sequence[str] | None = None, scale: int = 1) -> Image.Image:
    """Arrange images row by row, with thin gutters, and a label left of each row.

    Args:
        images: uint8 [n, c, h, w], gray (c = 1) or RGB (c = 3).
        columns: images in a row.
        labels: one text per row.
        scale: how often each pixel is repeated in both directions.

    Raises:
        InputError: the images, the number of columns or of labels, or the scale cannot be used.
    """
    _check(images, columns, labels, scale)
    gutter = max(1, scale // 2)
    pixels = _tiled(images.detach().cpu(), columns, scale, gutter)
    picture = Image.fromarray((pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).contiguous().numpy())
    return _labelled(picture, labels, images.shape[2] * scale, gutter) if labels else picture


def save_grid(
    path: Path, images: Tensor, columns: int, labels: Sequence[str] | None = None, width: int = 600
) -> tuple[int, int]:
    """Write a grid as a PNG, enlarged until it is about `width` pixels wide or a few thousand high.

    Args:
        path: the file to make or replace; its folder is made when missing.
        images: as in `grid`.
        columns: as in `grid`.
        labels: as in `grid`.
        width: of the picture without its labels, in pixels.

    Returns:
        Width and height of the picture in pixels.

    Raises:
        InputError: as in `grid`, or the picture would be too large.
    """
    _check(images, columns, labels, scale=1)
    rows = -(-len(images) // columns)
    enough = -(-width // (columns * images.shape[3]))
    scale = max(1, min(enough, _TALL // (rows * images.shape[2])))
    buffer = io.BytesIO()
    picture = grid(images, columns, labels, scale)
    picture.save(buffer, format="PNG", optimize=True)
    files.write_bytes(path, buffer.getvalue())
    return picture.size


def _check(images: Tensor, columns: int, labels: Sequence[str] | None, scale: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
        raise InputError(
            f"cannot draw a {images.dtype} tensor of shape {list(images.shape)}", "give uint8 images [n, c, h, w]"
        )
    if images.shape[1] not in (1, 3):
        raise InputError(f"cannot draw images of {images.shape[1]} channels", "draw one channel or three")
    if columns < 1 or scale < 1:
        raise InputError(f"cannot draw {columns} columns at scale {scale}", "give positive numbers")
    rows = -(-len(images) // columns)
    if labels is not None and len(labels) != rows:
        raise InputError(f"{len(labels)} labels for {rows} rows", "give one label per row")
    if max(rows * images.shape[2], columns * images.shape[3]) * scale > _MAX_SIDE:
        raise InputError("the picture would be too large", "draw fewer images")


def _tiled(images: Tensor, columns: int, scale: int, gutter: int) -> Tensor:
    """uint8 [n, c, h, w] to one uint8 picture [height, width, c]."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    step = (height * scale + gutter, width * scale + gutter)
    canvas = torch.full((rows * step[0] + gutter, columns * step[1] + gutter, channels), _BACKGROUND, dtype=torch.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * step[0] + gutter, (index % columns) * step[1] + gutter
        enlarged = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        canvas[top : top + height * scale, left : left + width * scale] = enlarged.permute(1, 2, 0)
    return canvas


def _labelled(picture: Image.Image, labels: Sequence[str], tile: int, gutter: int) -> Image.Image:
    """The picture with a column of text on its left, each line in the middle of its row."""
    font = ImageFont.load_default(size=max(10, min(20, tile // 2)))
    shown = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
    left = max(int(font.getlength(label)) for label in shown) + 2 * _MARGIN
    wide = Image.new(picture.mode, (picture.width + left, picture.height), _colour(picture.mode, _BACKGROUND))
    wide.paste(picture, (left, 0))
    draw = ImageDraw.Draw(wide)
    for row, label in enumerate(shown):
        middle = gutter + row * (tile + gutter) + tile // 2
        draw.text((left - _MARGIN, middle), label, fill=_colour(picture.mode, _INK), font=font, anchor="rm")
    return wide


def _colour(mode: str, value: int) -> int | tuple[int, int, int]:
    return (value, value, value) if mode == "RGB" else value
