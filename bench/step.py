"""(a) The ESP step against a plain training step, and its derivatives against other ways to them; time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad, jvp

from bench.measure import Row, pairs
from bench.setting import Size, task
from esp.core import Task
from esp.derivatives import loss_slope, loss_sum
from esp.methods._matching import HEAVIER
from esp.methods.esp import ESP
from esp.parametrisation import decode_all
from esp.rng import Key


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_times(Path(folder), size, device), *_larger(Path(folder), size, device)]


def _times(folder: Path, size: Size, device: torch.device) -> list[Row]:
    rows = []
    for compiled in (True, False):
        made = task(folder, size.network, "latent", 1, size.chunk, device, compiled)
        repeats = size.repeats if compiled else min(3, size.repeats)
        whole = made.chunked(HEAVIER * len(made.labels))
        rows += [*_steps(whole, size, repeats), *_steps(made, size, repeats), *_ways(made, size, repeats)]
    return rows


def _steps(made: Task, size: Size, repeats: int) -> list[Row]:
    """The whole step, without real images and with them."""
    count, how = len(made.labels), "compiled" if made.compile else "eager"
    passes = "in one pass" if made.chunk >= HEAVIER * count else f"chunks of {made.chunk}"
    setting = f"{size.network}, {count} images decoded at ipc 1, {passes}, {how}"
    plain = _plain(made)
    alone = _stepper(made, ESP(dm=0.0, inner_loss="ce"))
    whole = _stepper(made, ESP(inner_loss="ce", real_batch=size.real_batch))
    real = f"{size.real_batch} real images per class"
    return [
        pairs("step", "ESP step on the synthetic set", alone, "a training step on the same images", plain, made.device,
              repeats, 3.0 if made.compile else None, setting),
        pairs("step", f"ESP step with L_DM on {real}", whole, "a training step on the synthetic images alone",
              plain, made.device, repeats, None, setting),
    ]  # fmt: skip


def _ways(made: Task, size: Size, repeats: int) -> list[Row]:
    """Ways to a gradient and what is pulled back through it."""
    count = made.chunk // made.network.classes * made.network.classes
    one, two, double, forward = _derivatives(made, count)
    how, target = ("compiled", 0.4) if made.compile else ("eager", None)
    setting = f"{size.network}, {count} images at once"
    what = f"gradient and mixed derivative, {how}"

    def row(what: str, ours: Callable[[], object], against: str, other: Callable[[], object], wanted: float | None,
            ) -> Row:  # fmt: skip
        return pairs("step", what, ours, against, other, made.device, repeats, wanted, setting)

    return [
        row(f"gradient and its pullback in one program, {how}", one, "double backward, eager", double, target),
        row(what, two, "double backward, eager", double, target),
        row(what, two, f"with reverse over forward, {how}", forward, None),
    ]


def _larger(folder: Path, size: Size, device: torch.device) -> list[Row]:
    """The same ratio for larger sets, through the narrow network."""
    rows = []
    for ipc in size.larger_ipc:
        made = task(folder, size.narrow, "latent", ipc, size.chunk, device, False)
        setting = f"{size.narrow}, {len(made.labels):,} images decoded at ipc {ipc}, chunks of {size.chunk}, eager"
        rows.append(
            pairs("step", f"ESP step on the synthetic set, ipc {ipc}", _stepper(made, ESP(dm=0.0, inner_loss="ce")),
                  "a training step on the same images", _plain(made), device, min(3, size.repeats), None, setting),
        )  # fmt: skip
    return rows


def _stepper(made: Task, method: ESP) -> Callable[[], object]:
    """Calls that each do one more step of a run."""
    state = method.init(made, Key(0))
    holder = [state]

    def step() -> object:
        holder[0], metrics = method.step(made, holder[0], Key(0))
        return metrics

    return step


def _plain(made: Task) -> Callable[[], object]:
    """One step of SGD on all decoded images, in the same chunks."""
    assert made.experts is not None
    state = made.start("noise", Key(0))
    parameters = {name.removeprefix("set."): value for name, value in state.items() if name.startswith("set.")}
    images = decode_all(made.parametrisation, parameters).to(made.device)
    targets = torch.nn.functional.one_hot(made.labels, made.network.classes).to(images)
    theta = made.network.init(Key(0)).to(made.device)
    count = -(-len(images) // made.chunk)
    xs, ys = images.tensor_split(count), targets.tensor_split(count)

    def step() -> object:
        total = torch.zeros_like(theta)
        for x, y in zip(xs, ys, strict=True):
            total += made.derivatives().parameter_gradient(theta, x, y)[0]
        return theta - 0.01 * total / len(images)

    return step


def _derivatives(made: Task, count: int) -> tuple[Callable[[], object], ...]:
    """Gradient and mixed derivative of `count` images, all at once in each.

    Ours, as one program and as two; by backpropagating through the backward pass, with one graph; and with the
    derivative along the direction taken forwards, then in reverse.
    """
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, *made.data.shape, generator=generator).to(made.device)
    rows = torch.arange(made.network.classes).repeat_interleave(count // made.network.classes)
    targets = torch.nn.functional.one_hot(rows, made.network.classes).to(images)
    theta = made.network.init(Key(0)).to(made.device)
    direction = torch.randn(len(theta), generator=generator).to(made.device)
    nothing = images.new_zeros(count, made.network.features)

    def answer(gradient: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return direction, torch.zeros_like(means), gradient

    def one() -> object:
        return made.derivatives().answered(theta, images, targets, answer)

    def two() -> object:
        made.derivatives().parameter_gradient(theta, images, targets)
        return made.derivatives().mixed_pullback(theta, direction, images, targets, nothing)

    def double() -> object:
        x, weights = images.detach().requires_grad_(), theta.detach().requires_grad_()
        loss = loss_sum(made.network(weights, x)[1], targets, "ce")
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad((gradient * direction).sum(), x)

    def along(x: Tensor) -> Tensor:
        outputs = jvp(lambda t: made.network(t, x)[1], (theta,), (direction,))
        slope: Tensor = (loss_slope(outputs[0], targets, "ce") * outputs[1]).sum()
        return slope

    reverse = torch.compile(grad(along), dynamic=False) if made.compile else grad(along)

    def forward() -> object:
        made.derivatives().parameter_gradient(theta, images, targets)
        return reverse(images)

    return one, two, double, forward
