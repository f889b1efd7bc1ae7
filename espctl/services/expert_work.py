"""Training the experts of a build in whatever process: one alone, or several as a stack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import experts as library
from esp import files
from esp.data.dataset import Dataset
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.errors import DivergedError
from esp.expert_stack import build_stack
from esp.networks.flat import build as build_network
from esp.training import Recipe
from espctl.jobs import pool
from espctl.jobs.compute import Compute


@dataclass(frozen=True)
class Item:
    """One expert to train, in any process; so many as `stack` says are trained at once."""

    folder: Path
    compute: Compute
    number: int
    dataset: str
    cache: Path
    network: str
    recipe: Recipe
    seed: int
    dtype: Any
    save_every: float
    held_out: float
    space: str
    stack: int = 1

    @property
    def path(self) -> Path:
        """Where its trajectory goes."""
        return library.places(self.folder, self.number)[0]

    def load(self) -> tuple[library.Plan, Dataset]:
        """What it is trained as, and on what."""
        data = in_space(load_data(self.dataset, self.cache), self.space, self.cache)
        data = data.held_out(self.held_out) if self.held_out else data
        network = build_network(self.network, data.shape, data.num_classes)
        return library.Plan(network, self.recipe, self.seed, self.dtype, self.space), data


@dataclass(frozen=True)
class Trained:
    """The experts that are finished, and what ended the training of another one."""

    paths: tuple[Path, ...]
    error: DivergedError | None = None


def stacks(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """The experts of one build that are trained together, in order."""
    size = items[0].stack if items else 1
    return [tuple(items[i : i + size]) for i in range(0, len(items), size)]


def train(items: Sequence[Item], report: pool.Report) -> Trained:
    """Train experts of one build at once in this process and write, beside each, how long it took.

    That is written first: a process that dies between the two, or has no space for it, makes the expert again. In a
    stack each expert's seconds are its share of the whole time.

    Events: {"number", "epoch", "loss", "accuracy"} after every epoch.
    """
    first, by_number = items[0], {item.number: item for item in items}
    device = first.compute.apply()
    plan, data = first.load()
    begun = time.monotonic()

    def describe_cost(number: int) -> None:
        seconds = (time.monotonic() - begun) / len(items)
        facts = {"seconds": seconds, "created": datetime.now(UTC).isoformat()}
        compute = {**first.compute.describe(), "stack": len(items)}
        files.write_json(by_number[number].path.with_suffix(".json"), {**facts, "compute": compute})

    def on_epoch(number: int, epoch: int, loss: float, accuracy: float) -> None:
        if epoch == first.recipe.epochs:
            describe_cost(number)
        report({"number": number, "epoch": epoch, "loss": loss, "accuracy": accuracy})

    how = first.folder, device, first.compute.compile, first.save_every
    error = None
    if len(items) == 1:
        library.build(plan, first.number, data, *how, lambda *told: on_epoch(first.number, *told))
    else:
        try:
            build_stack(plan, list(by_number), data, *how, on_epoch)
        except DivergedError as found:
            error = found
    done = [item for item in items if item.path.exists()]
    for item in done:
        if not item.path.with_suffix(".json").exists():  # an interrupt came after the last epoch
            describe_cost(item.number)
    return Trained(tuple(item.path for item in done), error)
