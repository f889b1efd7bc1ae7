"""Many networks trained at once as one program: their weights are the rows of [k, p], their batches lie side by side.

Every member of a stack has its own start, its own order of the images and its own augmentation, drawn from its key as
`esp.training.Trainer` draws them: orders, draws and learning rates are those of the network alone, to the bit. The
arithmetic is the same up to the order in which floats are summed, for convolutions of several networks are one grouped
convolution. In float64 a member equals the network alone to 1e-10; in float32 its gradient does to about 1e-4 of the
largest entry, and training magnifies that as it magnifies any rounding, another number of threads or another device
among it. A result therefore never depends on the stack in anything that has a meaning, and not to the bit.

Images, labels and weights live on the device. What a step needs from the host is random numbers of a few bytes per
image, sent through pinned memory; nothing waits for the device between two epochs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import grad, vmap

from esp import augment
from esp.augment import send
from esp.cutmix import draw_cut, mix_each
from esp.derivatives import loss_sum
from esp.errors import DivergedError, InputError
from esp.memory import is_out_of_memory, release
from esp.networks.flat import Network
from esp.networks.norms import MOMENTUM
from esp.parts import part
from esp.rng import Key
from esp.training import Snapshot, Trainer, diverged

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Together:
    """The members of a stack after an epoch.

    Attributes:
        epoch: epochs done.
        theta, velocity: [k, p].
        statistics: [k, b], running ones of batch normalisation.
        total: [k], the loss of the epoch summed over the images; of broken members that of the epoch that broke them.
        images: how many these are.
        broken: int64 [k], the first epoch whose loss, or a weight after it, was not finite; 0 for sound members.
    """

    epoch: int
    theta: Tensor
    velocity: Tensor
    statistics: Tensor
    total: Tensor
    images: int
    broken: Tensor

    def snapshots(self) -> list[Snapshot | DivergedError]:
        """Every member as the trainer of one network gives it, or what that would raise; this waits for the device."""
        totals, broken = self.total.tolist(), self.broken.tolist()
        return [
            diverged(broken[i], total / self.images)
            if broken[i]
            else Snapshot(self.epoch, self.theta[i], self.velocity[i], total / self.images, self.statistics[i])
            for i, total in enumerate(totals)
        ]


class Stack:
    """Trains several networks of one architecture and recipe at once.

    Args:
        trainer: of one of them; its device, recipe and choice of compilation are those of the stack.

    Raises:
        InputError: the network cannot be stacked.
    """

    def __init__(self, trainer: Trainer) -> None:
        require_stackable(trainer.network)
        self.trainer = trainer

    @cached_property
    def _gradient(self) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """As `gradients` says; compiled where the trainer's programs are."""
        made = gradients(self.trainer.network, self.trainer.recipe.loss, differentiable=self.trainer.compiled)
        return self.trainer.network.compiled(made) if self.trainer.compiled else made

    def epochs(
        self,
        starts: Sequence[Snapshot],
        images: Tensor,
        labels: Tensor,
        prepare: Callable[[Tensor], Tensor],
        keys: Sequence[Key],
        scales: Sequence[float] = (),
    ) -> Iterator[Together]:
        """Train on from `starts`, which are after the same epoch, and yield all members after every epoch.

        Members that have diverged are carried along, and told by `Together.broken`.

        Args:
            starts, keys, scales: as `Trainer.epochs` takes them, one for each member; scales of 1 when left out.
            images: [n, c, h, w], in whatever form `prepare` turns into normalised floats; moved to the device at once.
            labels: int64 [n], or target rows [n, classes].
            prepare: applied to each batch after it is gathered.
        """
        trainer, device = self.trainer, self.trainer.device
        recipe, count = trainer.recipe, len(images)
        scales = scales or [1.0] * len(starts)
        images, targets = images.to(device), trainer.targets(labels.to(device))
        theta, velocity = (torch.stack([getattr(s, name) for s in starts]).to(device) for name in ("theta", "velocity"))
        statistics = torch.stack([self._statistics(start) for start in starts])
        broken = torch.zeros(len(starts), dtype=torch.int64, device=device)
        total = torch.zeros(len(starts), dtype=theta.dtype, device=device)
        for epoch in range(starts[0].epoch, recipe.epochs):
            if recipe.reset_momentum and epoch in recipe.boundaries:
                velocity = torch.zeros_like(velocity)
            here = [key.fold("epoch", epoch) for key in keys]
            before, total = total, torch.zeros_like(total)
            order = torch.stack([torch.randperm(count, generator=key.fold("order").generator()) for key in here])
            parts = torch.split(send(order, device), recipe.batch, 1)
            for number, rows in enumerate(parts):
                batch = self._batch([key.fold("batch", number) for key in here], rows, images, targets, prepare)
                with part("training a network"):
                    slope, loss, moments = self._gradient(theta, *batch)
                total += loss * rows.shape[1]
                lr = _rates([scale * recipe.lr_at(epoch + number / len(parts)) for scale in scales], theta)
                theta, velocity = trainer.step(theta, velocity, slope, lr)
                statistics = statistics + MOMENTUM * (moments - statistics)
            total = torch.where(broken == 0, total, before)
            lost = ~(torch.isfinite(total) & torch.isfinite(theta.norm(dim=1)))
            broken = torch.where((broken == 0) & lost, epoch + 1, broken)
            yield Together(epoch + 1, theta, velocity, statistics, total, count, broken)

    def _statistics(self, start: Snapshot) -> Tensor:
        found = start.statistics if len(start.statistics) else self.trainer.network.first_statistics()
        return found.to(self.trainer.device)

    def _batch(
        self, keys: Sequence[Key], rows: Tensor, images: Tensor, targets: Tensor, prepare: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Augmented images [k, n, c, h, w] and target rows [k, n, classes] of one step, from rows [k, n]."""
        members, count = rows.shape
        x = prepare(images[rows.flatten()])
        x = x.reshape(members, count, *x.shape[1:])
        x = augment.apply_each([self.trainer.draw(count, key) for key in keys], x)
        wanted = targets[rows.flatten()].reshape(members, count, -1).to(x.dtype)
        probability = self.trainer.recipe.cutmix
        if not probability:
            return x, wanted
        size = (x.shape[3], x.shape[4])
        cuts = [draw_cut(count, size, probability, key.fold("cutmix").generator()) for key in keys]
        return mix_each(x, wanted, cuts)


def gradients(
    network: Network, loss: str, differentiable: bool = False
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """(theta [k, p], images [k, n, ...], targets [k, n, m]) -> gradients [k, p], mean losses [k], moments [k, b].

    The sum over members has the members' own gradients, so one backward pass gives them all.

    Args:
        differentiable: whether `torch.func` takes the gradient, which the compiler needs and eager code is slower by.
    """

    def one(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        _, logits, moments = network.train(theta, images)
        return loss_sum(logits, targets, loss) / len(images), moments

    def objective(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        losses, moments = vmap(one)(theta, images, targets)
        return losses.sum(), (losses, moments)

    def functional(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope, (losses, moments) = grad(objective, has_aux=True)(theta, images, targets)
        return slope, losses.detach(), moments.detach()

    def eager(theta: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            value, (losses, moments) = objective(theta, images, targets)
            (slope,) = torch.autograd.grad(value, theta)
        return slope, losses.detach(), moments.detach()

    return functional if differentiable else eager


def _rates(values: list[float], like: Tensor) -> float | Tensor:
    """Learning rates as a column [k, 1], or as one number where all are equal: that needs no transfer."""
    if len(set(values)) == 1:
        return values[0]
    return send(torch.tensor(values, dtype=like.dtype)[:, None], like.device)


def accuracies(
    network: Network,
    theta: Tensor,
    statistics: Tensor,
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    chunk: int,
) -> list[float]:
    """Fractions of images [n, c, h, w] that members theta [k, p], looking through statistics [k, b], get right.

    Args:
        chunk: images in a pass of one network; a stack takes so many fewer that the pass is as large.
    """
    device, each = theta.device, max(1, chunk // len(theta))
    right = torch.zeros(len(theta), dtype=torch.int64, device=device)

    def logits(weights: Tensor, moments: Tensor, x: Tensor) -> Tensor:
        return network.at(weights, moments if network.statistics else None, x)[1]

    with torch.no_grad():
        for x, y in zip(torch.split(images, each), torch.split(labels, each), strict=True):
            seen = prepare(x.to(device))
            found = vmap(logits, in_dims=(0, 0, None))(theta, statistics, seen)
            right += (found.argmax(2) == y.to(device)).sum(1)
    return [count / len(images) for count in right.tolist()]


def require_stackable(network: Network) -> None:
    """Check that networks of an architecture can be trained as one program.

    Raises:
        InputError: they cannot.
    """
    if not stackable(network):
        raise InputError(
            f"networks {network.spec} cannot be trained as a stack: one of their layers works on a single network only",
            "train them one by one: --stack 1",
        )


def stackable(network: Network) -> bool:
    """Whether networks of an architecture can be trained as one program; tried without any numbers.

    Those of the table can, with batch normalisation too; one's own can unless they look at values (`.item()`), draw
    random numbers, or use an operation that has no form for many networks.
    """
    theta = torch.empty(2, network.parameters, device="meta")
    images = torch.empty(2, 2, *network.shape, device="meta")
    targets = torch.empty(2, 2, network.classes, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it falls back to one network after another
        try:
            gradients(network, "ce")(theta, images, targets)
        except Exception:  # a foreign network can fail in any way
            return False
    return True


def bytes_each(network: Network, batch: int) -> int:
    """Bytes that a member of a stack needs while it takes a step of `batch` images, about.

    What the backward pass keeps is counted without any numbers; the images are there a few times while they are
    augmented, and the weights a few times as velocity, gradient and their successors.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # else another could get its place
        return tensor

    alive: list[Tensor] = []
    theta = torch.empty(network.parameters, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train(theta, torch.empty(batch, *network.shape, device="meta"))
    images = 4 * batch * torch.Size(network.shape).numel()
    return sum(kept.values()) + 2 * max(kept.values(), default=0) + 6 * images + 6 * 4 * network.parameters


def halved(work: Callable[[Sequence[T]], list[R]], members: Sequence[T]) -> list[R]:
    """`work(members)`, in two halves where all of them do not fit into memory at once, and so on.

    Args:
        work: must be able to begin again, or to go on, after it failed.
    """
    try:
        return work(members)
    except Exception as error:
        if len(members) == 1 or not is_out_of_memory(error):
            raise
    release()  # only here: the error, which holds what the attempt had made, is gone
    half = -(-len(members) // 2)
    return [*halved(work, members[:half]), *halved(work, members[half:])]
