"""Knowledge factorisation and sharing (KFS; Lee, Lee and Hwang, arXiv 2208.10494, 2022; methods.md 13)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.errors import InputError
from esp.methods._matching import Rates, View
from esp.methods.dm import DM
from esp.rng import Key


@dataclass(frozen=True)
class KFS:
    """Distribution matching on latent codes and decoders that all classes share.

    The paper's text is not to be had; what is published of it, and methods.md 13.5 for the rest, make this recipe.
    The first steps are a warm-up: matching distributions from noise is slow, so codes and decoders first learn to draw
    random real images, one for each synthetic image. Then Adam begins afresh and the steps are those of DM.

    Attributes:
        steps: in all; at the defaults, 20,000 of them match distributions.
        decoder_pretrain: how many of them are warm-up; 0 for none.
        lr_codes, lr_decoders: Adam's learning rates at the start of either part; they fall linearly to zero in it.
        real_batch: real images per class and step.
        real_classes, layers, net_source: as those of DM; the paper's are not known.
        augmentation: DSA strategy, shared by real and synthetic images of a class.
    """

    steps: int = 20_500
    decoder_pretrain: int = 500
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    real_batch: int = 256
    real_classes: int = 0
    layers: Literal["last", "all"] = "last"
    net_source: Literal["random", "expert"] = "random"
    augmentation: str = augment.STRATEGY
    default_parametrisation: ClassVar[str] = "latent"
    only_parametrisation: ClassVar[str] = "latent"
    needs_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """With networks of experts it needs those."""
        object.__setattr__(self, "needs_experts", self.net_source == "expert")

    @cached_property
    def _matching(self) -> DM:
        return DM(
            steps=self.steps - self.decoder_pretrain,
            lr_codes=self.lr_codes,
            lr_decoders=self.lr_decoders,
            real_batch=self.real_batch,
            real_classes=self.real_classes,
            layers=self.layers,
            net_source=self.net_source,
            augmentation=self.augmentation,
            start="noise",
        )

    @property
    def _rates(self) -> Rates:
        return Rates("adam", 0.0, self.lr_codes, self.lr_decoders)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and sets without codes and decoders."""
        if task.parametrisation.stores_images:
            raise InputError(
                "KFS learns codes and decoders, which a set of stored images has not",
                "use --parametrisation latent, or --method dm for stored images",
            )
        if not 0 <= self.decoder_pretrain < self.steps:
            raise InputError(
                f"KFS with steps={self.steps} has none left after decoder_pretrain={self.decoder_pretrain}",
                "raise --set steps=..., or lower --set decoder_pretrain=...",
            )
        if self.real_batch < 1:
            raise InputError("KFS needs a real_batch of at least 1", "correct the --set options")
        self._matching.check(task)

    def init(self, task: Task, key: Key) -> State:
        """Codes from the normal distribution, decoders as PyTorch initialises them."""
        return self._matching.init(task, key)

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One step of the warm-up, or of DM."""
        past = int(state["step"]) - self.decoder_pretrain
        if past < 0:
            return self._reconstruct(task, state, key)
        if past == 0:
            state = {**state, **self._rates.start(synthetic_parameters(state))}
        counted = {**state, "step": state["step"] - self.decoder_pretrain}
        after, metrics = self._matching.step(task, counted, key)
        return {**after, "step": state["step"] + 1}, metrics

    def _reconstruct(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One update towards the mean squared error, over all numbers, of every synthetic image and its real one."""
        view, done = View(task, synthetic_parameters(state), ()), int(state["step"])
        rows = task.partners(key.fold("partners"))
        count, losses = len(rows) * task.data.train_images[0].numel(), []

        def cotangent(images: Tensor, places: slice) -> Tensor:
            gap = images - task.images(rows[places])
            losses.append(gap.square().sum() / count)
            return 2 * gap / count

        slopes = view.pull(cotangent)
        state = self._rates.update(state, slopes, 1 - done / self.decoder_pretrain)
        return state, {"reconstruction": sum(losses, start=losses[0].new_zeros(()))}
