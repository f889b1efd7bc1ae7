"""CAFE's loss: every level of a network aligned, and class centres that discriminate (methods.md 10)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from esp import augment
from esp.core import Metrics, Task
from esp.errors import InputError
from esp.methods._matching import View
from esp.optim import Tensors
from esp.rng import Key


def align(
    view: View,
    theta: Tensor,
    weights: tuple[float, float, float, float],
    count: int,
    key: Key,
    classes: Iterable[int] | None = None,
) -> tuple[Metrics, Tensors]:
    """The two losses of an update, and the slopes of their sum in the parameters of the synthetic set.

    Alignment is the weighted sum over levels and classes of |mean of real activations - mean of synthetic ones|^2;
    discrimination the weighted cross-entropy, summed over real images, of features times class centres, the means of
    synthetic features. Real images are looked at one class at a time, so that memory does not grow with them.

    Args:
        view: the synthetic set.
        theta: weights [p] of the network that looks.
        weights: of all levels but two, of the one before last, of the last (the features), and of discrimination.
        count: real images of each class.
        key: names the choice of real images.
        classes: those that are matched, which the view must have; None for all.
    """
    early, late, last, discrimination = weights
    pulls = level_means(view, theta)  # synthetic means [C, d_l], which become the derivatives of the loss in them
    scales = [early] * (len(pulls) - 2) + [late, last]
    centres, slope = pulls[-1].clone(), torch.zeros_like(pulls[-1])
    gaps, crossed = theta.new_zeros(()), theta.new_zeros(())
    for label in range(len(centres)) if classes is None else classes:
        wanted, cross, on_centres = _real(view, theta, centres, label, count, key)
        crossed, slope = crossed + discrimination * cross, slope + discrimination * on_centres
        for scale, pull, real in zip(scales, pulls, wanted, strict=True):
            gap = pull[label] - real
            gaps = gaps + scale * gap.square().sum()
            pull[label] = 2 * scale * gap
    pulls[-1] += slope

    def cotangent(images: Tensor, rows: slice) -> Tensor:
        which, share = view.task.labels[rows].to(theta.device), len(centres) / len(view.task.labels)
        levels = view.task.network.levels(theta, images.requires_grad_())
        return torch.autograd.grad(levels, images, [share * pull[which] for pull in pulls])[0]

    return {"align": gaps, "discrimination": crossed}, view.pull(cotangent)


def require_levels(name: str, task: Task) -> None:
    """Refuse a network that does not show the activations of its blocks."""
    if not task.network.has_levels:
        raise InputError(
            f"{name} aligns the blocks of a network, and {task.network.spec} only shows its last features",
            "use a ConvNet, or give the network a method `levels`",
        )


def level_means(view: View, theta: Tensor) -> list[Tensor]:
    """Class means [C, d_l] of the activations of the whole synthetic set at every level. No graph."""
    labels, classes = view.task.labels.to(theta.device), view.task.data.num_classes
    means: list[Tensor] = []
    with torch.no_grad():
        for units, rows in view.chunks():
            levels = view.task.network.levels(theta, view.images(units, rows))
            means = means or [x.new_zeros(classes, x.shape[1]) for x in levels]
            for mean, level in zip(means, levels, strict=True):
                mean.index_add_(0, labels[rows], level, alpha=classes / len(labels))
    return means


def _real(
    view: View, theta: Tensor, centres: Tensor, label: int, count: int, key: Key
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of real images of a class: mean activations [d_l], cross-entropy sum [], and its derivative [C, d] in centres."""
    task = view.task
    images, labels = task.real([label], count, key)
    hot = F.one_hot(labels.to(theta.device), len(centres)).to(theta)
    means: list[Tensor] = []
    cross, slope = theta.new_zeros(()), torch.zeros_like(centres)
    with torch.no_grad():
        for x, y, target in zip(*(torch.split(t, task.chunk) for t in (images, labels, hot)), strict=True):
            levels = task.network.levels(theta, augment.apply(view.draw, x, y))
            logits = levels[-1] @ centres.T
            cross = cross - (target * logits.log_softmax(1)).sum()
            slope = slope + (logits.softmax(1) - target).T @ levels[-1]
            means = means or [level.new_zeros(level.shape[1]) for level in levels]
            means = [mean + level.sum(0) / len(images) for mean, level in zip(means, levels, strict=True)]
    return means, cross, slope
