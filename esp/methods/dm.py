"""Distribution matching (DM; Zhao and Bilen, WACV 2023; methods.md 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Cotangent, Rates, View, class_means, real_means, require_choices
from esp.rng import Key


@dataclass(frozen=True)
class DM:
    """Match the class means of features of networks that are freshly initialised at every step.

    Loss: sum over classes of the squared distance of class-mean features, summed over features. The learning rate 1.0
    belongs to that sum. On pixels the optimiser is SGD with momentum, as published; on latent codes it is Adam with
    linear decay (the form that KFS gives it).
    """

    steps: int = 20_000
    lr_pixels: float = 1.0
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    momentum: float = 0.5
    real_batch: int = 256
    augmentation: str = augment.STRATEGY
    start: Literal["auto", "real", "noise"] = "auto"
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def _rates(self, task: Task) -> Rates:
        optimiser = "sgd" if task.parametrisation.stores_images else "adam"
        return Rates(optimiser, self.lr_pixels, self.lr_codes, self.lr_decoders, self.momentum)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense."""
        task.operations(self.augmentation)
        require_choices(self, start=("auto", "real", "noise"))
        if self.real_batch < 1:
            raise InputError("DM needs a real_batch of at least 1", "correct the --set options")

    def init(self, task: Task, key: Key) -> State:
        """From real images where the parametrisation can hold them, from noise where not."""
        state = task.start(self.start, key)
        return {**state, **self._rates(task).start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One synthetic update against a fresh network."""
        here = key.fold("step", int(state["step"]))
        theta = task.network.init(here.fold("network")).to(task.device)
        classes = task.data.num_classes
        draw = augment.draw_single(task.operations(self.augmentation), classes, here.fold("augment").generator())
        view = View(task, synthetic_parameters(state), draw)
        gap = synthetic_means(view, theta) - real_means(
            task, theta, list(range(classes)), self.real_batch, draw, here.fold("real")
        )
        rates = self._rates(task)
        factor = 1.0 if rates.optimiser == "sgd" else 1 - int(state["step"]) / self.steps
        return rates.update(state, view.pull(Cotangent(view, theta, 2 * gap)), factor), {"dm": gap.square().sum()}


def synthetic_means(view: View, theta: Tensor) -> Tensor:
    """Class means [C, d] of the features of the whole synthetic set, without a graph."""
    task = view.task
    with torch.no_grad():
        features = [task.derivatives().features(theta, view.images(units, rows)) for units, rows in view.chunks()]
    return class_means(torch.cat(features), task.labels, task.data.num_classes)
