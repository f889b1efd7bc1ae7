"""Differentiable siamese augmentation (DSA; Zhao and Bilen, 2021; methods.md 3 and appendix C), as pure functions.

What happens to a batch is drawn first, for a number of *groups*, and applied afterwards: samples of one group get the
same operation with the same parameters. Groups are classes when real and synthetic images are to be augmented alike
(siamese), samples when every image gets parameters of its own. Drawing never touches a global generator and never
depends on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from esp.errors import UnknownNameError
from esp.parts import is_part

STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""All operations, as the field writes them for CIFAR."""

CROP, CUTOUT, SCALE, DEGREES = 0.125, 0.5, 1.2, 15.0
_NUMBERS = 3  # uniform numbers that an operation may use


@dataclass(frozen=True)
class Stage:
    """One operation for each group.

    Attributes:
        operation: int64 [g], indices into `OPERATIONS`.
        uniform: float32 [g, 3], the numbers in [0, 1) that parametrise it.
    """

    operation: Tensor
    uniform: Tensor


Draw = tuple[Stage, ...]


def parse(strategy: str, flips: bool = True) -> tuple[str, ...]:
    """The operations of `a_b_c`; `none` and the empty string have none; `flip` is dropped where flips change the label.

    Raises:
        UnknownNameError: an operation does not exist.
    """
    names = tuple(name for name in strategy.split("_") if name and name != "none")
    for name in names:
        if name not in OPERATIONS:
            raise UnknownNameError("augmentation", name, OPERATIONS)
    return tuple(name for name in names if flips or name != "flip")


def draw_single(names: tuple[str, ...], groups: int, generator: torch.Generator, shared: bool = False) -> Draw:
    """One operation of `names` for each group, or one for all (`shared`) with parameters of their own (DSA mode S)."""
    if not names:
        return ()
    choice = torch.randint(len(names), (1 if shared else groups,), generator=generator).expand(groups)
    index = torch.tensor([list(OPERATIONS).index(name) for name in names])
    return (Stage(index[choice], torch.rand(groups, _NUMBERS, generator=generator)),)


def draw_sequence(names: tuple[str, ...], groups: int, generator: torch.Generator) -> Draw:
    """IDC's order: flip, color, one of the remaining operations (the same for all groups), cutout (methods.md 3.3)."""
    rest = tuple(name for name in names if name in ("crop", "scale", "rotate"))
    stages: list[Stage] = []
    for part in (("flip",), ("color",), rest, ("cutout",)):
        stages += draw_single(tuple(name for name in part if name in names), groups, generator, shared=True)
    return tuple(stages)


@is_part("augmentation")
def apply(draw: Draw, images: Tensor, group: Tensor | None = None) -> Tensor:
    """Augment images [n, c, h, w]; `group` [n] says which group each belongs to (default: sample i is group i).

    Differentiable in the images; the result has their shape. Zeros, where an operation leaves a hole, mean the data
    set's mean colour.
    """
    for stage in draw:
        operation, uniform = stage.operation, stage.uniform
        if group is not None:
            operation, uniform = operation[group], uniform[group]
        images = _apply_stage(operation, uniform.to(images), images)
    return images


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; to a GPU through pinned memory, so that nobody waits for what it is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def apply_each(draws: Sequence[Draw], images: Tensor) -> Tensor:
    """Augment the batches of several networks, images [k, n, c, h, w], each by its own draw.

    To the bit what `apply` does to each of them, without a look at the device: operations are picked on the host.

    Args:
        draws: one for each network, of `draw_single(shared=True)` or `draw_sequence`: one operation a stage.
    """
    stages = list(zip(*draws, strict=True))
    if not stages:
        return images
    drawn = torch.stack([torch.stack([one.uniform for one in stage]) for stage in stages])
    for stage, uniform in zip(stages, send(drawn.to(images.dtype), images.device), strict=True):
        images = _apply_each([int(one.operation[0]) for one in stage], uniform, images)
    return images


def _apply_each(operations: Sequence[int], uniform: Tensor, images: Tensor) -> Tensor:
    """One stage: an operation for each network, uniform [k, n, 3], images [k, n, c, h, w]."""
    functions = list(OPERATIONS.values())
    done: dict[int, Tensor] = {}
    for index in sorted(set(operations)):
        members = [member for member, operation in enumerate(operations) if operation == index]
        x, u = (torch.cat([tensor[member] for member in members]) for tensor in (images, uniform))
        done.update(zip(members, torch.split(functions[index](x, u), images.shape[1]), strict=True))
    return torch.stack([done[member] for member in range(len(operations))])


def _apply_stage(operation: Tensor, uniform: Tensor, images: Tensor) -> Tensor:
    functions = list(OPERATIONS.values())
    present = sorted(set(operation.tolist()))
    if len(present) == 1:
        only: Tensor = functions[present[0]](images, uniform)
        return only
    parts = [(operation == index).nonzero()[:, 0] for index in present]
    order = torch.cat(parts).argsort().to(images.device)
    done = [
        functions[i](images[rows.to(images.device)], uniform[rows.to(images.device)])
        for i, rows in zip(present, parts, strict=True)
    ]
    return torch.cat(done)[order]


def _color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation, contrast, always all three in this order."""
    brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * 2.0) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side; what moves in is zero."""
    rows = _shift_matrix(u[:, 0], x.shape[2])
    columns = _shift_matrix(u[:, 1], x.shape[3])
    return _resample(x, rows, columns)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left and right with probability one half."""
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    """Stretch height and width on their own by 1/1.2 to 1.2, bilinear, zeros outside."""
    low = 1 / SCALE
    factors = low + u[:, :2] * (SCALE - low)
    return _resample(x, _stretch_matrix(factors[:, 1], x.shape[2]), _stretch_matrix(factors[:, 0], x.shape[3]))


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    """Rotate by up to 15 degrees, bilinear, zeros outside."""
    angle = (u[:, 0] * 2 - 1) * math.radians(DEGREES)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of zeros, half the side long, clipped at the border."""
    rows = _hole(u[:, 0], x.shape[2])
    columns = _hole(u[:, 1], x.shape[3])
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


def _resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [n, h, h] and columns [n, w, w] applied to every channel: separable resampling is two matrix products."""
    return rows[:, None] @ x @ columns[:, None].transpose(2, 3)


def _shift_matrix(u: Tensor, side: int) -> Tensor:
    """[n, side, side] with a one at (i, i + t), t uniform in -s..s, s = an eighth of the side."""
    reach = int(side * CROP + 0.5)
    shift = (u * (2 * reach + 1)).floor() - reach
    place = torch.arange(side, device=u.device, dtype=u.dtype)
    return (place[None, None, :] == place[None, :, None] + shift[:, None, None]).to(u.dtype)


def _stretch_matrix(factor: Tensor, side: int) -> Tensor:
    """[n, side, side] bilinear weights for sampling at `factor` times the distance from the centre."""
    place = torch.arange(side, device=factor.device, dtype=factor.dtype)
    centre = (side - 1) / 2
    source = (place[None, :] - centre) * factor[:, None] + centre
    return (1 - (source[:, :, None] - place[None, None, :]).abs()).clamp(min=0)


def _hole(u: Tensor, side: int) -> Tensor:
    """bool [n, side]: where the square lies along one axis."""
    length = int(side * CUTOUT + 0.5)
    centre = (u * (side + 1 - length % 2)).floor()
    place = torch.arange(side, device=u.device, dtype=u.dtype)[None]
    first = (centre - length // 2)[:, None]
    return (place >= first) & (place < first + length)
