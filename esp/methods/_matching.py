"""What the methods that match a network's view of real and synthetic images have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from esp import augment
from esp.core import Task
from esp.derivatives import Answer
from esp.errors import UnknownNameError
from esp.optim import Tensors, adam, below, prefixed, sgd, start_adam, start_sgd
from esp.parts import is_part, part
from esp.rng import Key

HEAVIER = 2
"""What is pulled back through a gradient holds 2.3 times what that does, compiled: for half a chunk it is 1.2."""


@dataclass(frozen=True)
class View:
    """The synthetic set as a network sees it in one step: decoded, augmented alike within a class, in chunks.

    With `by_class` no chunk holds images of two classes; with `only` there are no chunks but those of these classes.
    """

    task: Task
    parameters: Tensors
    draw: augment.Draw
    by_class: bool = False
    only: tuple[int, ...] = ()

    def chunks(self, label: int | None = None) -> Iterator[tuple[slice, slice]]:
        """Units and images of each chunk: of nearly equal size, none above `task.chunk` images unless one unit is.

        With a `label`, and `by_class`, only the chunks of that class.
        """
        made = self.task.parametrisation
        apart = self.by_class or bool(self.only)
        blocks, total = (made.frame.classes, made.units) if apart else (1, made.frame.classes * made.units)
        each = made.multiplicity
        count = -(-total // max(1, self.task.chunk // each))
        edges = [round(i * total / count) for i in range(count + 1)]
        for block in (self.only or range(blocks)) if label is None else (label,):
            for first, last in pairwise(block * total + edge for edge in edges):
                yield slice(first, last), slice(first * each, last * each)

    def images(self, units: slice, rows: slice, parameters: Tensors | None = None) -> Tensor:
        """Augmented normalised images of a chunk, differentiable in `parameters` when those are given."""
        with part("decoding"):
            decoded = self.task.parametrisation.decode(parameters or self.parameters, units.start, units.stop)
        return augment.apply(self.draw, decoded, self.task.labels[rows])

    def targets(self, rows: slice) -> Tensor:
        """One-hot labels [n, classes] of a chunk."""
        labels = self.task.labels[rows].to(self.task.device)
        dtype = next(iter(self.parameters.values())).dtype
        return torch.nn.functional.one_hot(labels, self.task.network.classes).to(dtype)

    def pull(self, cotangent: Callable[[Tensor, slice], Tensor]) -> Tensors:
        """Gradients of the parameters, given d objective / d images for each chunk as `cotangent(images, rows)`."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        total = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        for units, rows in self.chunks():
            images = self.images(units, rows, leaves)
            slope = cotangent(images.detach(), rows)
            with part("decoding and augmentation, backwards"):
                slopes = torch.autograd.grad(images, list(leaves.values()), slope, allow_unused=True)
            for name, found in zip(leaves, slopes, strict=True):
                if found is not None:
                    total[name] += found
        return total


@dataclass(frozen=True)
class Cotangent:
    """d/d images of <class-mean features, pull> + <mean-loss gradient in theta, direction>, for one chunk at a time.

    Attributes:
        view: the synthetic set.
        theta: weights [p] of the network that looks.
        pull: [classes, d], derivative of the objective in the class means.
        direction: [p], derivative of the objective in the parameter gradient, or None where it does not depend on it:
            then one plain reverse pass does, else it is the mixed derivative.
        loss: the loss of that parameter gradient.
    """

    view: View
    theta: Tensor
    pull: Tensor
    direction: Tensor | None = None
    loss: str = "ce"

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Like images [n, c, h, w]; `rows` are their places in the whole set."""
        task = self.view.task
        derivatives = task.derivatives(self.loss)
        weights = self.pull[task.labels[rows].to(self.pull.device)] * (task.data.num_classes / len(task.labels))
        if self.direction is None:
            return derivatives.feature_pullback(self.theta, images, weights)
        along, count = self.direction / len(task.labels), -(-len(images) // -(-task.chunk // HEAVIER))
        parts = (part.tensor_split(count) for part in (images, self.view.targets(rows), weights))
        return torch.cat([derivatives.mixed_pullback(self.theta, along, *part) for part in zip(*parts, strict=True)])


def matched(view: View, theta: Tensor, answer: Answer, loss: str = "ce", mixed: bool = True) -> tuple[Tensors, Any]:
    """Gradients of a set's parameters, for an objective in its gradient and its class means; and what `answer` adds.

    A set of at most half a chunk is one pass, whose activations stay until the objective is known. Of a larger one each
    chunk is computed twice: for the gradient and the means of all, then for what the objective makes of them.

    Args:
        theta: weights [p] of the network that looks.
        answer: from the gradient [p] of the mean loss and the class means [C, d] to the objective's derivatives.
        loss: of that gradient.
        mixed: whether the objective depends on the gradient.
    """
    task = view.task
    if not mixed or len(task.labels) > task.chunk // HEAVIER:
        direction, slope, found = answer(*look(view, theta, loss))
        return view.pull(Cotangent(view, theta, slope, direction, loss)), found

    def whole(images: Tensor, rows: slice) -> Tensor:
        nonlocal found
        slope, found = task.derivatives(loss).answered(theta, images, view.targets(rows), answer)
        return slope

    found = None
    return view.pull(whole), found


def look(view: View, theta: Tensor, loss: str = "ce") -> tuple[Tensor, Tensor]:
    """Gradient [p] of the mean loss on the whole set, and class-mean features [C, d], in one pass. No graph."""
    task, gradient = view.task, torch.zeros_like(theta)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        for units, rows in view.chunks():
            slope, features, _ = task.derivatives(loss).parameter_gradient(
                theta, view.images(units, rows), view.targets(rows)
            )
            gradient.add_(slope)
            yield features, task.labels[rows]

    with torch.no_grad():
        means = class_means(parts(), task.data.num_classes)
    return gradient / len(task.labels), means


def mean_gradient(task: Task, theta: Tensor, batches: Iterable[tuple[Tensor, Tensor]], loss: str = "ce") -> Tensor:
    """Gradient [p] at theta [p] of the mean loss over batches of (images, targets [n, classes]). No graph."""
    total, count = torch.zeros_like(theta), 0
    with torch.no_grad():
        for images, targets in batches:
            total += task.derivatives(loss).parameter_gradient(theta, images, targets)[0]
            count += len(images)
    return total / count


def class_means(parts: Iterable[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Mean feature of each class, [classes, d]; the row of an absent class is zero.

    Args:
        parts: features [n, d] and labels [n], a chunk at a time: only the sums of what went before are kept.
        classes: rows of the result.
    """
    sums, counts = torch.zeros(()), torch.zeros(classes, dtype=torch.int64)
    for features, labels in parts:
        sums = sums if sums.ndim else features.new_zeros(classes, features.shape[1])
        sums.index_add_(0, labels.to(features.device), features)
        counts += torch.bincount(labels.cpu(), minlength=classes)
    return sums / counts.clamp(min=1)[:, None].to(sums.device)


def synthetic_means(view: View, theta: Tensor) -> Tensor:
    """Class means [C, d] of the features of the synthetic set, without a graph; zero where the view has no class."""
    task = view.task
    with torch.no_grad():
        parts = (
            (task.derivatives().features(theta, view.images(units, rows)), task.labels[rows])
            for units, rows in view.chunks()
        )
        return class_means(parts, task.data.num_classes)


def real_means(task: Task, theta: Tensor, classes: list[int], count: int, draw: augment.Draw, key: Key) -> Tensor:
    """Mean features [C, d] of augmented random real images of `classes`; rows of other classes are zero. No graph.

    Images are read a chunk at a time, so that memory does not grow with the number of classes.
    """
    everything = zip(*(torch.split(part, task.chunk) for part in task.real_rows(classes, count, key)), strict=True)
    with torch.no_grad():
        parts = (
            (task.derivatives().features(theta, augment.apply(draw, task.images(rows), labels)), labels)
            for rows, labels in everything
        )
        return class_means(parts, task.data.num_classes)


@dataclass(frozen=True)
class Rates:
    """Learning rates of the kinds of parameters that a synthetic set can have, with their optimiser."""

    optimiser: str
    pixels: float
    codes: float
    decoders: float
    momentum: float = 0.0

    def start(self, parameters: Tensors) -> Tensors:
        """The optimiser's state, under `optimiser.`."""
        if self.optimiser not in ("adam", "sgd"):
            raise UnknownNameError("optimiser", self.optimiser, ("adam", "sgd"))
        return prefixed("optimiser", start_adam(parameters) if self.optimiser == "adam" else start_sgd(parameters))

    @is_part("optimiser")
    def update(self, state: Tensors, gradients: Tensors, factor: float) -> Tensors:
        """`state` after a step on its `set.` entries with every rate multiplied by `factor`; `step` goes up by one."""
        parameters, memory, step = below("set", state), below("optimiser", state), int(state["step"])
        rates = {name: factor * getattr(self, name.split(".")[0]) for name in parameters}
        if self.optimiser == "adam":
            parameters, memory = adam(parameters, gradients, memory, rates, step)
        else:
            parameters, memory = sgd(parameters, gradients, memory, rates, self.momentum)
        return {**state, **prefixed("set", parameters), **prefixed("optimiser", memory), "step": state["step"] + 1}
