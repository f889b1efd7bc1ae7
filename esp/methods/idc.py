"""Efficient synthetic-data parametrisation (IDC; Kim et al., ICML 2022; methods.md 12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Rates, mean_gradient
from esp.methods._options import require_options
from esp.networks.flat import Network
from esp.optim import Tensors, prefixed
from esp.parametrisation import Frame
from esp.rng import Key
from esp.spaces import NORMALISED
from esp.training import Recipe, Snapshot

_BATCH = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class IDC:
    """Match gradients class by class while a network learns the real data.

    In a step every class in turn has an update of the synthetic set, from the gradients of convolution kernels on its
    real and synthetic images; then the network is trained on real images. A fresh network comes every `restart` steps.

    IDC works in raw pixel space [0, 1]; our sets are stored normalised. Its SGD at a rate r there is the same as SGD
    here at r / std^2 in each channel, and its clamp to [0, 1] one to [(0 - mean) / std, (1 - mean) / std]: so it is
    done. Pixels are clamped when a network starts, as published, and at the end.

    Attributes:
        steps: inner steps; the paper draws 2000 networks of 100 steps.
        restart: steps of each network.
        real_batch: real images of a class in an update.
        synthetic_batch: synthetic images of a class in an update, at most.
        train_images: real images that the network is trained on after every step: 2000 for CIFAR, 500 for SVHN.
        batch, lr_network, decay, cutmix: of that training, by SGD with momentum 0.9.
        distance: between gradients: `mse`, the sum of squares, or `l1` (MNIST and Fashion-MNIST).
        lr_pixels: in raw space, for 10 images per class of 32x32; `rate` scales it.
        momentum: of SGD on pixels.
        lr_codes, lr_decoders: Adam's learning rates at the start, for latent sets; they fall linearly to zero.
        augmentation: flip, color, one of crop, scale, rotate, and cutout as far as named here, in this order, with
            the same parameters for all images of an update; the network's training leaves cutout to CutMix.
        start: `noise`, `real`, or `auto`: real images where the parametrisation stores images.
    """

    steps: int = 200_000
    restart: int = 100
    real_batch: int = 64
    synthetic_batch: int = 128
    train_images: int = 2_000
    batch: int = 64
    lr_network: float = 0.01
    decay: float = 5e-4
    cutmix: float = 0.5
    distance: Literal["mse", "l1"] = "mse"
    lr_pixels: float = 5e-3
    momentum: float = 0.5
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    augmentation: str = "color_crop_cutout"
    start: Literal["auto", "real", "noise"] = "auto"
    default_parametrisation: ClassVar[str] = "multiformation"
    needs_experts: ClassVar[bool] = False

    def rate(self, frame: Frame) -> float:
        """Learning rate of pixels in raw space: `lr_pixels` x ipc / 10 x pixels / 32^2."""
        return self.lr_pixels * frame.ipc / 10 * frame.shape[1] * frame.shape[2] / 32**2

    def _rates(self, task: Task) -> Rates:
        pixels = self.rate(task.parametrisation.frame)
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, pixels, self.lr_codes, self.lr_decoders, self.momentum)

    @property
    def _recipe(self) -> Recipe:
        names = [name for name in self.augmentation.split("_") if name != "cutout" or not self.cutmix]
        return Recipe(
            1,
            self.batch,
            self.lr_network,
            0.9,
            self.decay,
            augmentation="_".join(names),
            mode="sequence",
            cutmix=self.cutmix,
        )

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and networks without convolutions."""
        task.operations(self.augmentation)
        require_options(self, task, start=("auto", "real", "noise"), distance=("mse", "l1"))
        if min(self.restart, self.real_batch, self.synthetic_batch, self.train_images) < 1:
            raise InputError(
                "IDC needs restart, real_batch, synthetic_batch and train_images of at least 1",
                "correct the --set options",
            )
        _ = self._recipe
        if task.data.space != NORMALISED:
            raise InputError(
                f"IDC keeps its images between black and white, which pixel space {task.data.space!r} does not know",
                f"use --space {NORMALISED}",
            )
        if not kernels(task.network).any():
            raise InputError(
                f"IDC matches convolution kernels, and {task.network.spec} has none", "give another --network"
            )

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set and its optimiser; the network comes with the first step."""
        state = task.start(self.start, key)
        return {**state, **self._rates(task).start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """An update for every class, and the network's training."""
        done, classes, rates = int(state["step"]), task.data.num_classes, self._rates(task)
        here, steps = key.fold("step", done), state["step"]
        if done % self.restart == 0:
            theta = task.network.init(key.fold("network", done // self.restart)).to(task.device)
            state = {**_clamped(task, state), "network": theta, "velocity": torch.zeros_like(theta)}
        task = task.frozen(state["network"], here.fold("statistics"))
        factor = 1.0 if rates.optimiser == "sgd" else 1 - done / self.steps
        state, total = {**state, "step": steps * classes}, torch.zeros((), device=task.device)
        for label in range(classes):
            value, slopes = self._match(task, state, label, here.fold("class", label))
            state, total = rates.update(state, slopes, factor), total + value
        state, loss = self._train(task, {**state, "step": steps + 1}, here.fold("train"))
        return (_clamped(task, state) if done + 1 == self.steps else state), {"distance": total, "network": loss}

    def _match(self, task: Task, state: State, label: int, key: Key) -> tuple[Tensor, Tensors]:
        """Distance [] of the gradients of a class, and its slopes in the parameters of the synthetic set."""
        theta, made = state["network"], task.parametrisation
        leaves = {name: value.detach().requires_grad_() for name, value in synthetic_parameters(state).items()}
        images = made.decode(leaves, label * made.units, (label + 1) * made.units)
        chosen = torch.randperm(len(images), generator=key.fold("images").generator())[: self.synthetic_batch]
        draw = augment.draw_sequence(task.operations(self.augmentation), 1, key.fold("augment").generator())
        synthetic = augment.apply(draw, images[chosen.to(images.device)], torch.zeros(len(chosen), dtype=torch.int64))
        real, _ = task.real([label], self.real_batch, key.fold("real"))
        real = augment.apply(draw, real, torch.zeros(len(real), dtype=torch.int64))
        batches = _batches(task, synthetic.detach(), label)
        gap = mean_gradient(task, theta, batches) - mean_gradient(task, theta, _batches(task, real, label))
        gap = gap * kernels(task.network).to(gap)
        along = (2 * gap if self.distance == "mse" else gap.sign()) / len(chosen)
        pull, nothing = task.derivatives().mixed_pullback, gap.new_zeros(len(chosen), task.network.features)
        cotangent = torch.cat([pull(theta, along, x, y, nothing[: len(x)]) for x, y in batches])
        slopes = torch.autograd.grad(synthetic, list(leaves.values()), cotangent)
        value = gap.square().sum() if self.distance == "mse" else gap.abs().sum()
        return value, dict(zip(leaves, (_raw(task, slope) for slope in slopes), strict=True))

    def _train(self, task: Task, state: State, key: Key) -> tuple[State, Tensor]:
        """The network after one pass over some real images, and its mean loss."""
        data = task.data
        rows = torch.randperm(len(data.train_labels), generator=key.fold("rows").generator())[: self.train_images]
        rows = rows.to(data.train_images.device)
        start = Snapshot(0, state["network"], state["velocity"], None)
        run = task.trainer(self._recipe).epochs(
            start, data.train_images[rows], data.train_labels[rows], data.normalise, key
        )
        end = next(run)
        return {**state, "network": end.theta, "velocity": end.velocity}, torch.tensor(end.loss)


def kernels(network: Network) -> Tensor:
    """bool [p]: which of a network's weights belong to convolution kernels."""
    flat = torch.zeros(network.parameters)
    return torch.cat([torch.full((p.numel(),), p.ndim == 4) for p in network.tensors(flat).values()])


def _batches(task: Task, images: Tensor, label: int) -> list[_BATCH]:
    """Images [n, c, h, w] of one class in chunks, with their one-hot targets."""
    hot = torch.nn.functional.one_hot(torch.tensor(label), task.network.classes).to(images)
    return [(x, hot.expand(len(x), -1)) for x in torch.split(images, task.chunk)]


def _raw(task: Task, slope: Tensor) -> Tensor:
    """A slope in normalised pixels times 1 / std^2, which makes a step of SGD in raw space of it; others as is."""
    if not task.parametrisation.stores_images:
        return slope
    return slope / torch.tensor(task.data.std).to(slope)[:, None, None] ** 2


def _clamped(task: Task, state: State) -> State:
    """The state with stored pixels within what raw pixels in [0, 1] are; codes have no bounds."""
    if not task.parametrisation.stores_images:
        return state
    low, high = (task.data.normalise(torch.full(task.data.shape, value)) for value in (0.0, 1.0))
    parameters = synthetic_parameters(state)
    bound = {name: value.clamp(low.to(value), high.to(value)) for name, value in parameters.items()}
    return {**state, **prefixed("set", bound)}
