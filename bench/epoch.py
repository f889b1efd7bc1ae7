"""(c) An epoch of an expert on a CPU: memory kept by the process, as `espctl` does, against glibc's own ways."""

from __future__ import annotations

import time
from typing import Literal

import torch

from bench.measure import Row, isolated, row_of
from bench.setting import Size, data
from esp.networks.flat import build
from esp.rng import Key
from esp.training import Recipe, Snapshot, Trainer
from espctl.jobs.compute import peak_memory

REPEATS = 3
BATCH = 256


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part; none on a GPU, whose memory torch keeps by itself."""
    if device.type != "cpu":
        return []
    images = size.experts[1]
    kept, freed = ([_measured(size, images, how) for _ in range(REPEATS)] for how in ("kept", "freed"))
    setting = f"{size.network}, {images:,} images in batches of {BATCH}, eager, the second epoch"
    what, against = "an epoch with freed memory kept", "given back to the system"
    pairs = list(zip(kept, freed, strict=True))
    return [
        row_of("epoch", what, against, "s", [(a[0], b[0]) for a, b in pairs], 1.0, setting),
        row_of("epoch", f"peak memory of {what}", against, "B", [(a[1], b[1]) for a, b in pairs], None, setting),
    ]  # fmt: skip


def _measured(size: Size, images: int, memory: Literal["kept", "freed"]) -> tuple[float, float]:
    found: tuple[float, float] = isolated(_epoch, size.network, images, memory=memory)
    return found


def _epoch(network: str, images: int) -> tuple[float, float]:
    """Seconds of the second epoch, and the most bytes that the process held."""
    device, real = torch.device("cpu"), data(images)
    made = build(network, real.shape, real.num_classes)
    theta = made.init(Key(0))
    trainer = Trainer(made, Recipe(epochs=2, lr=0.01, batch=BATCH), real.flips, device, False)
    start = Snapshot(0, theta, torch.zeros_like(theta), None)
    run = trainer.epochs(start, real.train_images, real.train_labels, real.normalise, Key(1))
    next(run)
    begun = time.perf_counter()
    next(run)
    return time.perf_counter() - begun, float(peak_memory(device))
