"""Distribution matching (DM; Zhao and Bilen, WACV 2023; methods.md 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._levels import align, require_levels
from esp.methods._matching import Cotangent, Rates, View, real_means, synthetic_means
from esp.methods._options import require_options, require_segments
from esp.optim import Tensors
from esp.rng import Key


@dataclass(frozen=True)
class DM:
    """Match the class means of features of networks that are freshly initialised at every step.

    Loss: sum over classes of the squared distance of class-mean features, summed over features. The learning rate 1.0
    belongs to that sum. On pixels the optimiser is SGD with momentum, as published; on latent codes it is Adam with
    linear decay (the form that KFS gives it). Batch normalisation is frozen by real images (`Task.frozen`), where the
    published code normalises real and synthetic images each by their own batch, of all classes.

    Attributes:
        steps: synthetic updates.
        lr_pixels, momentum: of SGD on pixels.
        lr_codes, lr_decoders: Adam's learning rates at the start.
        real_batch: real images per class and step.
        real_classes: classes drawn for each step, with all their synthetic images; 0 for all.
        layers: `last`, or `all`: every block of the network, before its pooling, and the features for the last one.
        net_source: `random`, or `expert`: a random snapshot of a random expert in place of a fresh network.
        augmentation: DSA strategy, shared by real and synthetic images of a class.
        start: `noise`, `real`, or `auto`: real where the parametrisation stores images.
    """

    steps: int = 20_000
    lr_pixels: float = 1.0
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    momentum: float = 0.5
    real_batch: int = 256
    real_classes: int = 0
    layers: Literal["last", "all"] = "last"
    net_source: Literal["random", "expert"] = "random"
    augmentation: str = augment.STRATEGY
    start: Literal["auto", "real", "noise"] = "auto"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """With networks of experts it needs those."""
        object.__setattr__(self, "needs_experts", self.net_source == "expert")

    def _rates(self, task: Task) -> Rates:
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, self.lr_pixels, self.lr_codes, self.lr_decoders, self.momentum)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and networks or experts that cannot give what they ask."""
        task.operations(self.augmentation)
        require_options(
            self, task, start=("auto", "real", "noise"), layers=("last", "all"), net_source=("random", "expert")
        )
        if self.real_batch < 1 or self.real_classes < 0:
            raise InputError(
                "DM needs a real_batch of at least 1, and real_classes of 0 or more", "correct the --set options"
            )
        if self.layers == "all":
            require_levels("DM with layers=all", task)
        if self.needs_experts:
            require_segments("DM with net_source=expert", task, 0, 0)

    def init(self, task: Task, key: Key) -> State:
        """From real images where the parametrisation can hold them, from noise where not."""
        state = task.start(self.start, key)
        return {**state, **self._rates(task).start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One synthetic update against a fresh network."""
        here, everyone = key.fold("step", int(state["step"])), task.data.num_classes
        operations, chosen = task.operations(self.augmentation), list(range(everyone))
        draw = augment.draw_single(operations, everyone, here.fold("augment").generator())
        some = 0 < self.real_classes < everyone
        if some:
            order = torch.randperm(everyone, generator=here.fold("classes").generator())
            chosen = sorted(order[: self.real_classes].tolist())
        theta = self._network(task, here.fold("network"))
        task = task.frozen(theta, here.fold("statistics"))
        view = View(task, synthetic_parameters(state), draw, only=tuple(chosen) if some else ())
        loss, slopes = self._match(view, theta, chosen, here.fold("real"))
        rates = self._rates(task)
        factor = 1.0 if rates.optimiser == "sgd" else 1 - int(state["step"]) / self.steps
        return rates.update(state, slopes, factor), {"dm": loss}

    def _network(self, task: Task, key: Key) -> Tensor:
        """Weights [p] of the network that looks."""
        if self.net_source == "random":
            return task.network.init(key).to(task.device)
        assert task.experts is not None
        generator = key.generator()
        expert = task.experts.trajectories[int(torch.randint(len(task.experts.trajectories), (), generator=generator))]
        epoch = int(torch.randint(expert.epochs + 1, (), generator=generator))
        return expert.segment(epoch, 0)[0].to(task.device)

    def _match(self, view: View, theta: Tensor, classes: list[int], key: Key) -> tuple[Tensor, Tensors]:
        """The loss [] on some classes, and its slopes in the parameters of the synthetic set."""
        if self.layers == "all":
            losses, slopes = align(view, theta, (1.0, 0.0, 1.0, 0.0), self.real_batch, key, classes)
            return losses["align"], slopes
        gap = synthetic_means(view, theta) - real_means(view.task, theta, classes, self.real_batch, view.draw, key)
        return gap.square().sum(), view.pull(Cotangent(view, theta, 2 * gap))
