"""Dataset condensation via Expert Subspace Projection (ESP; Ma et al., Sensors 2023, 23, 8148; methods.md 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from esp import augment
from esp.core import Metrics, State, Task, synthetic_parameters
from esp.derivatives import LOSSES, Answer
from esp.errors import InputError
from esp.methods._matching import Rates, View, matched, real_means
from esp.methods._options import require_options, require_segments
from esp.rng import Key
from esp.subspace import Subspace
from esp.trajectory import Experts

ProjNorm = Literal["l1", "l2", "l2sq", "relative"]


@dataclass(frozen=True)
class ESP:
    """Lower L_DM + beta * L_Proj at every step of a student that walks inside an expert's subspace (eq. 4 to 10).

    Batch normalisation is frozen where the student starts (`Task.frozen`), and stays so until its next start.

    Attributes:
        steps: synthetic updates; every one is also a step of the student.
        beta: weight of L_Proj (eq. 9); 0 leaves L_DM alone.
        dm: weight of L_DM (eq. 8); 0 leaves L_Proj alone.
        segment: T, epochs between the first and last snapshot that span the subspace (eq. 2).
        restart: student steps before a new expert and start epoch are drawn.
        start_min, start_max: range of start epochs, both included.
        proj_norm: L_Proj of the residual r of the gradient G: |r|_1 (eq. 7), |r|_2, |r|_2^2, or the scale-free
            |r|_2 / |G|_2.
        dm_reduction: whether L_DM sums or averages over the features; beta means something else in each.
        inner_loss: loss whose gradient is projected (eq. 4): `bce` summed over classes, or `ce`; a mean over samples
            either way.
        inner_step: whether the student moves by the projected gradient (eq. 6) or by the plain one.
        lr_network: alpha, the student's learning rate.
        lr_codes, lr_decoders, lr_pixels: Adam's learning rates at the start; they fall linearly to zero.
        real_batch: real images per class and step.
        real_classes: classes drawn for L_DM in each step; 0 for all.
        augmentation: DSA strategy, shared by real and synthetic images of a class.
        start: `noise` (the paper's), or `real` images for pixels.
    """

    steps: int = 10_000
    beta: float = 1e-5
    dm: float = 1.0
    segment: int = 10
    restart: int = 20
    start_min: int = 0
    start_max: int = 20
    proj_norm: ProjNorm = "l1"
    dm_reduction: Literal["sum", "mean"] = "sum"
    inner_loss: Literal["bce", "ce"] = "bce"
    inner_step: Literal["projected", "plain"] = "projected"
    lr_network: float = 0.1
    lr_codes: float = 0.1
    lr_decoders: float = 0.01
    lr_pixels: float = 0.1
    real_batch: int = 256
    real_classes: int = 0
    augmentation: str = augment.STRATEGY
    start: Literal["noise", "real"] = "noise"
    default_parametrisation: ClassVar[str] = "latent"
    needs_experts: ClassVar[bool] = True

    @property
    def _rates(self) -> Rates:
        return Rates("adam", self.lr_pixels, self.lr_codes, self.lr_decoders)

    def check(self, task: Task) -> None:
        """Refuse options that make no sense, and experts that are missing, too short or of something else."""
        task.operations(self.augmentation)
        require_options(
            self,
            task,
            proj_norm=get_args(ProjNorm),
            dm_reduction=("sum", "mean"),
            inner_loss=LOSSES,
            inner_step=("projected", "plain"),
            start=("noise", "real"),
        )
        if self.real_batch < 1:
            raise InputError("ESP needs a real_batch of at least 1", "correct the --set options")
        if min(self.beta, self.dm, self.real_classes) < 0 or not self.beta + self.dm:
            raise InputError(
                "ESP needs beta, dm and real_classes of 0 or more, and something to lower",
                "give --set beta=... or --set dm=... above 0",
            )
        if self.restart < 1 or self.segment < 1 or not 0 <= self.start_min <= self.start_max:
            raise InputError(
                "ESP needs restart and segment of at least 1 and 0 <= start_min <= start_max",
                "correct the --set options",
            )
        require_segments("ESP", task, self.segment, self.start_max)

    def init(self, task: Task, key: Key) -> State:
        """The synthetic set and its optimiser; the student begins with the first step."""
        state = task.start(self.start, key)
        return {**state, **self._rates.start(synthetic_parameters(state))}

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """One synthetic update (eq. 10) and one step of the student (eq. 6), both at the same weights."""
        done = int(state["step"])
        here = key.fold("step", done)
        segment = key.fold("segment", done // self.restart)
        first, space = self._segment(task, segment)
        if task.device.type == "cuda":  # a CPU would only share itself between the two: bench/segments.py
            self._prepare(task, key, done // self.restart + 1)
        task = task.frozen(first, segment.fold("statistics"))
        student = self._student(state, first, space)
        theta = space.point(student) if self.inner_step == "projected" else student
        draw = augment.draw_single(
            task.operations(self.augmentation), task.data.num_classes, here.fold("augment").generator()
        )
        view = View(task, synthetic_parameters(state), draw)
        answer = self._answer(space, *self._real(task, theta, draw, here))
        slopes, (metrics, move) = matched(view, theta, answer, self.inner_loss, mixed=self.beta > 0)
        state = self._rates.update(state, slopes, 1 - done / self.steps)
        return {**state, "student": student - self.lr_network * move}, metrics

    def _segment(self, task: Task, key: Key) -> tuple[Tensor, Subspace]:
        """First snapshot and subspace of the segment that `key` draws."""
        assert task.experts is not None
        return task.experts.segment(*self._draw(task.experts, key), self.segment, task.device)

    def _prepare(self, task: Task, key: Key, number: int) -> None:
        """Have the segment of that number read while this one is used, if there will be one."""
        assert task.experts is not None
        if number * self.restart < self.steps:
            drawn = self._draw(task.experts, key.fold("segment", number))
            task.experts.prepare(*drawn, self.segment, task.device)

    def _draw(self, experts: Experts, key: Key) -> tuple[int, int]:
        """Expert and start epoch."""
        generator = key.generator()
        expert = int(torch.randint(len(experts.trajectories), (), generator=generator))
        return expert, int(torch.randint(self.start_min, self.start_max + 1, (), generator=generator))

    def _student(self, state: State, first: Tensor, space: Subspace) -> Tensor:
        """Where the student is: coordinates [k] in the subspace, or weights [p] when its steps may leave it."""
        if int(state["step"]) % self.restart:
            return state["student"]
        return space.coordinates(first) if self.inner_step == "projected" else first

    def _real(self, task: Task, theta: Tensor, draw: augment.Draw, key: Key) -> tuple[Tensor, Tensor]:
        """Class means [C, d] of real images, and which classes count [C]: 1 or 0."""
        everyone = task.data.num_classes
        chosen, counts = list(range(everyone)), theta.new_zeros(everyone)
        if not self.dm:
            return theta.new_zeros(everyone, task.network.features), counts
        if 0 < self.real_classes < everyone:
            chosen = torch.randperm(everyone, generator=key.fold("classes").generator())[: self.real_classes].tolist()
        counts[chosen] = 1
        return real_means(task, theta, chosen, self.real_batch, draw, key.fold("real")), counts

    def _answer(self, space: Subspace, real: Tensor, counts: Tensor) -> Answer:
        """The derivatives of the objective (eq. 9); with the metrics, and the gradient that moves the student."""

        def answer(gradient: Tensor, means: Tensor) -> tuple[Tensor | None, Tensor, tuple[Metrics, Tensor]]:
            inside, residual = space.split(gradient)
            proj, direction = proj_loss(gradient, residual, space, self.proj_norm, slope=self.beta > 0)
            dm, slope = dm_loss(means, real, counts, self.dm_reduction)
            lengths = {"gradient": gradient.norm(), "inside": inside.norm() / gradient.norm()}
            metrics = {"loss": self.dm * dm + self.beta * proj, "dm": dm, "proj": proj, **lengths}
            along = None if direction is None else self.beta * direction
            return along, self.dm * slope, (metrics, inside if self.inner_step == "projected" else gradient)

        return answer


def dm_loss(means: Tensor, real: Tensor, counts: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """L_DM [] (eq. 8) of class means [C, d] against real ones, and its derivative [C, d] in the means.

    Args:
        counts: 1 for each class that counts, 0 for the others [C].
        reduction: `sum` or `mean` over the features.
    """
    gap = (means - real) * counts[:, None]
    scale = counts.sum() * (means.shape[1] if reduction == "mean" else 1)
    scale = scale.clamp(min=1)  # where none counts
    return gap.square().sum() / scale, 2 * gap / scale


def proj_loss(
    gradient: Tensor, residual: Tensor, space: Subspace, norm: ProjNorm, slope: bool = True
) -> tuple[Tensor, Tensor | None]:
    """L_Proj [] of G [p] with residual r [p], and u = dL_Proj/dG [p], outside the subspace but for `relative`.

    l1: u = (I - EE') sign(r); l2: r/|r|; l2sq: 2r; relative: (r/|r| - |r| G/|G|^2) / |G|. Without `slope` u is None.
    """
    if norm == "l1":
        return residual.abs().sum(), space.outside(residual.sign()) if slope else None
    if norm == "l2sq":
        return residual.square().sum(), 2 * residual if slope else None
    # A gradient that lies in the subspace, or is zero, has no direction outside it: 0 / tiny is 0.
    length, whole = residual.norm(), gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
    unit = residual / length.clamp(min=torch.finfo(residual.dtype).tiny)
    if norm == "l2":
        return length, unit if slope else None
    return length / whole, (unit - length / whole * (gradient / whole)) / whole if slope else None
