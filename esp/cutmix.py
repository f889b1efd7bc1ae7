"""CutMix with Beta(1, 1) (Yun et al., 2019), drawn on the host and applied to one batch or to those of a stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esp.augment import send


@dataclass(frozen=True)
class Cut:
    """What CutMix does to a batch: a box, rows [n] of the images that fill it, and the share that is not filled."""

    top: int
    bottom: int
    left: int
    right: int
    partner: Tensor
    share: float


def draw_cut(count: int, size: tuple[int, int], probability: float, generator: torch.Generator) -> Cut | None:
    """The CutMix of a batch of `count` images of `size` (height, width); None, but for `probability`."""
    chance, kept, row, column = torch.rand(4, generator=generator).tolist()
    partner = torch.randperm(count, generator=generator)
    if chance >= probability:
        return None
    height, width = size
    half = math.sqrt(1 - kept) / 2
    centre_y, centre_x = int(row * height), int(column * width)
    top, bottom = max(0, centre_y - int(height * half)), min(height, centre_y + int(height * half))
    left, right = max(0, centre_x - int(width * half)), min(width, centre_x + int(width * half))
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Cut(top, bottom, left, right, partner, share)


def cutmix(images: Tensor, targets: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same box for all images of a batch, filled from other images of it.

    Args:
        images: [n, c, h, w].
        targets: rows [n, k] that sum to 1; mixed by the area that is kept.
        probability: that the batch is mixed at all.
        generator: source of randomness.
    """
    cut = draw_cut(len(images), (images.shape[2], images.shape[3]), probability, generator)
    if cut is None:
        return images, targets
    partner, box = cut.partner.to(images.device), (..., slice(cut.top, cut.bottom), slice(cut.left, cut.right))
    mixed = images.clone()
    mixed[box] = images[partner][box]
    return mixed, cut.share * targets + (1 - cut.share) * targets[partner]


def mix_each(images: Tensor, targets: Tensor, cuts: Sequence[Cut | None]) -> tuple[Tensor, Tensor]:
    """CutMix of all members: images [k, n, c, h, w], targets [k, n, m], and what was drawn for each; None: nothing."""
    if not any(cuts):
        return images, targets
    members, count = images.shape[:2]
    inside = torch.zeros(members, 1, 1, *images.shape[3:], dtype=torch.bool)
    partner = torch.arange(count).repeat(members, 1)
    share = torch.ones(members, 1, 2, dtype=torch.float64)
    for i, cut in enumerate(cuts):
        if cut is not None:
            inside[i, :, :, cut.top : cut.bottom, cut.left : cut.right] = True
            partner[i] = cut.partner
            share[i, 0] = torch.tensor([cut.share, 1 - cut.share], dtype=torch.float64)
        else:
            share[i, 0, 1] = 0
    rows = send((partner + count * torch.arange(members)[:, None]).flatten(), images.device)
    other = images.flatten(0, 1)[rows].reshape(images.shape)
    shares = send(share.to(targets.dtype), images.device)
    others = targets.flatten(0, 1)[rows].reshape(targets.shape)
    mixed = torch.where(send(inside, images.device), other, images)
    return mixed, shares[..., :1] * targets + shares[..., 1:] * others
