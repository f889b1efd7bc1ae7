"""What is measured on: made-up data of the real size, a network, an expert, a synthetic set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esp import artifact
from esp.core import Task
from esp.data.dataset import Dataset
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, build
from esp.rng import Key
from esp.trajectory import Experts, open_trajectory


@dataclass(frozen=True)
class Size:
    """How large the bench is.

    Attributes:
        name: what results call it.
        network: of the timings.
        narrow: network of the memory and MTT parts, where a CPU cannot carry the wide one.
        chunk: images per pass.
        repeats: pairs of each timing.
        real_batch: real images per class and step.
        unrolled_ipc, unrolled_steps: settings of the comparison with MTT.
        experts: experts of the comparison (how many, training images, epochs).
        larger_ipc: budgets, beside 1, that a step is timed at.
    """

    name: str
    network: str
    narrow: str
    chunk: int
    repeats: int
    real_batch: int
    unrolled_ipc: tuple[int, ...]
    unrolled_steps: tuple[int, ...]
    experts: tuple[int, int, int]
    larger_ipc: tuple[int, ...]


SIZES = {
    "rehearsal": Size("rehearsal", "convnet3,width=8", "convnet3,width=8", 64, 2, 8, (1,), (1, 2), (2, 256, 1), ()),
    "cpu": Size(
        "cpu", "convnet3", "convnet3,width=32", 64, 7, 256, (1, 10, 50), (1, 10, 30, 50), (4, 2_000, 2), (10,)
    ),
    "cuda": Size("cuda", "convnet3", "convnet3", 512, 15, 256, (1, 10, 50), (1, 10, 30, 50), (16, 50_000, 2), (10, 50)),
}  # fmt: skip


def data(images: int = 5_000, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10) -> Dataset:
    """Random pixels with balanced labels, in the form of a data set."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[Tensor, Tensor]:
        pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
        return pixels, torch.arange(count) % classes

    train, test = part(images), part(1_000)
    channels = shape[0]
    return Dataset(
        "random", *train, *test, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels, "computed",
        True, "random",
    )  # fmt: skip


def experts(folder: Path, network: Network, epochs: int) -> Experts:
    """One expert that wanders at random."""
    theta = network.init(Key(0))
    generator = torch.Generator().manual_seed(1)
    moves = torch.randn(epochs, len(theta), generator=generator) * float(theta.norm()) / math.sqrt(len(theta)) / 10
    path = folder / f"{network.features}-{len(theta)}-{epochs}.safetensors"
    meta = {"kind": "trajectory", "epochs": epochs, "network": network.spec, "fingerprint": "random"}
    artifact.save(path, {"theta": torch.cat([theta[None], theta + moves.cumsum(0)])}, meta, by_row=("theta",))
    return Experts((open_trajectory(path),))


def task(
    folder: Path, network: str, stored: str, ipc: int, chunk: int, device: torch.device, compile: bool,  # noqa: A002
    epochs: int = 60,
) -> Task:  # fmt: skip
    """CIFAR-10's shape, condensed through `network` into `ipc` images per class stored as `stored`."""
    real = data()
    built = build_network(network, real.shape, real.num_classes)
    parametrisation = build(stored, Frame(real.num_classes, ipc, real.shape), {})
    return Task(real, built, parametrisation, experts(folder, built, epochs), device, chunk, compile)
