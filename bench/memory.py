"""(a) The ESP step: its peak memory against that of a plain training step, for larger sets and more inner steps.

On a CPU this is resident memory. What freed tensors leave in the heap would hide what a step needs, so every tensor of
some size is a mapping of its own here, which goes back to the system with it. A first step that is not measured brings
what stays: code of the libraries, their threads, pages of the experts' file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import Row, isolated, peak_memory, plain_row, row_of
from bench.setting import Size, task
from esp.methods._matching import HEAVIER
from esp.methods.esp import ESP
from esp.parametrisation import Frame, build, labels
from esp.rng import Key

REPEATS = 3
WHOLE = len(labels(build("latent", Frame(10, 1, (3, 32, 32)), {})))
"""Images of the synthetic set at ipc 1, decoded."""
LONG_REPEATS = 1
"""Of what takes minutes each: on a CPU giving every tensor back to the system takes most of the time."""


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part."""
    name, network = str(device), size.narrow

    def peaks(ipc: int, steps: int, repeats: int = REPEATS) -> list[float]:
        return [isolated(_peak_step, network, ipc, size.chunk, name, steps, memory="tight") for _ in range(repeats)]

    plain = [isolated(_peak_plain, network, size.chunk, name, memory="tight") for _ in range(REPEATS)]
    one, ten, fifty, long = peaks(1, 1), peaks(10, 1), peaks(50, 1, LONG_REPEATS), peaks(1, 50, LONG_REPEATS)
    at_once = [isolated(_peak_step, network, 1, HEAVIER * WHOLE, name, 1, memory="tight") for _ in range(REPEATS)]
    all_plain = [isolated(_peak_plain, network, WHOLE, name, memory="tight") for _ in range(REPEATS)]
    setting = f"{network}, chunks of {size.chunk}, eager"

    def row(what: str, ours: list[float], against: str, other: list[float], target: float | None, how: str = setting
            ) -> Row:  # fmt: skip
        return row_of("memory", what, against, "B", list(zip(ours, other, strict=False)), target, how)

    return [
        row("peak of an ESP step, ipc 1", one, "a training step on one chunk", plain, 1.5),
        row("peak of an ESP step, ipc 10", ten, "of one at ipc 1", one, 1.15),
        row("peak of an ESP step, ipc 50", fifty, "of one at ipc 1", one, 1.15),
        row("peak over 50 inner steps", long, "over 1", one, 1.05),
        row("peak of an ESP step in one pass, ipc 1", at_once, "a training step on the same images", all_plain, None,
            f"{network}, {WHOLE} images at once, eager"),
        plain_row("memory", "peak of a training step on one chunk", "B", plain, None, setting),
    ]  # fmt: skip


def _peak_plain(network: str, chunk: int, device: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = task(Path(folder), network, "latent", 1, chunk, torch.device(device), False)
        images = torch.randn(chunk, *made.data.shape).to(device)
        targets = torch.nn.functional.one_hot(torch.arange(chunk) % 10, 10).to(images)
        theta = made.network.init(Key(0)).to(device)

        def step() -> object:
            return made.derivatives().parameter_gradient(theta, images, targets)

        step()
        return peak_memory(step, made.device)


def _peak_step(network: str, ipc: int, chunk: int, device: str, steps: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = task(Path(folder), network, "latent", ipc, chunk, torch.device(device), False)
        method = ESP(real_batch=max(1, min(chunk, len(made.labels)) // 10))
        state, _ = method.step(made, method.init(made, Key(0)), Key(0))

        def walk() -> Tensor:
            current = state
            for _ in range(steps):
                current, metrics = method.step(made, current, Key(0))
            return metrics["loss"]

        return peak_memory(walk, made.device)
