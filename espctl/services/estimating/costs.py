"""What training networks costs on this machine: experts on real images, and networks that score a synthetic set."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from esp import experts as library
from esp.core import Task
from esp.data.dataset import Dataset
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.errors import DivergedError, InputError
from esp.evaluation import Evaluator
from esp.expert_stack import build_stack
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.protocols import PROTOCOLS
from esp.recipes import Protocol
from esp.rng import Key
from espctl.jobs.compute import FLOPS_PER_SECOND, Compute, peak_memory
from espctl.jobs.compute import resolve as resolve_compute
from espctl.services import experts as expert_service
from espctl.services.project import Project
from espctl.services.protocols import find as find_protocol

BATCHES, EPOCHS, TESTS = 4, 4, 256
"""Size of a trial training: batches of an epoch, epochs (the first of them a warm-up), and test images."""


@dataclass(frozen=True)
class Building:
    """Cost of training experts. `total` is of all that are missing, `jobs` of them at the same time.

    `seconds` and `epoch_seconds` are of one, or its share of those of a stack.
    """

    store: str
    finished: int
    missing: int
    epochs: int
    jobs: int
    epoch_seconds: float
    seconds: float
    total: float
    peak_memory_bytes: int
    bytes: int
    free_bytes: int
    compute: Compute


@dataclass(frozen=True)
class Scoring:
    """Cost of training one network on the set by a protocol, and of `seeds` of them, one after another.

    Attributes:
        measured: whether steps of this protocol were taken; else the time follows from one that was, and operations.
    """

    protocol: str
    network: str
    epochs: int
    seconds: float
    seeds: int
    total: float
    measured: bool


def building(project: Project, request: expert_service.BuildRequest) -> Building:
    """Train one expert for a few batches and say what all that are missing cost.

    Raises:
        InputError: the disk has less space than the experts need.
        EspError: whatever is wrong with the request.
    """
    plan, items = expert_service.prepare(project, request)
    chosen, free = project.settings.experts, free_bytes(project.paths.experts)
    each, epoch = 0.0, 0.0
    device = plan.compute.apply()
    if items:
        data = in_space(
            load_data(request.dataset, project.paths.data, project.paths.raw), request.space, project.paths.data
        )
        data = data.held_out(request.held_out) if request.held_out else data
        network = build_network(chosen.network, data.shape, data.num_classes)
        made = library.Plan(network, items[0].recipe, request.seed, chosen.dtype, data.space)
        start, epoch = _time_experts(made, data, device, plan.compute.compile, plan.stack)
        each = start + epoch * chosen.epochs
    rounds = -(-len(items) // (plan.stack * min(chosen.jobs, len(items)))) if items else 0
    return Building(
        plan.store, len(plan.finished), len(items), chosen.epochs, chosen.jobs * plan.stack, epoch / plan.stack,
        each / plan.stack, rounds * each, peak_memory(device), plan.bytes, free, plan.compute,
    )  # fmt: skip


def _time_experts(
    plan: library.Plan, data: Dataset, device: torch.device, compiled: bool, stack: int
) -> tuple[float, float]:
    """Seconds of a stack of experts: before the first epoch, compilation included, and of an epoch on the whole set."""
    count = min(BATCHES * plan.recipe.batch, len(data.train_images))
    share = count / len(data.train_images)
    tests = max(1, round(share * min(library.CURVE_IMAGES, len(data.test_images))))
    small = replace(
        data,
        train_images=data.train_images[:count],
        train_labels=data.train_labels[:count],
        test_images=data.test_images[:tests],
        test_labels=data.test_labels[:tests],
    )
    stamps: list[float] = []
    begun = time.monotonic()

    def hear(number: int, *_: object) -> None:
        if number == 0:
            stamps.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DivergedError):
        short = replace(plan, recipe=replace(plan.recipe, epochs=EPOCHS))
        how = Path(folder), device, compiled, 1e9
        if stack == 1:
            library.build(short, 0, small, *how, partial(hear, 0))
        else:
            build_stack(short, range(stack), small, *how, hear)
    if len(stamps) < 2:
        raise InputError("training diverges within its first batches", "lower the learning rate with --lr")
    pace = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
    batches = -(-len(data.train_images) // plan.recipe.batch) / -(-count // plan.recipe.batch)
    return max(0.0, stamps[0] - begun - pace), pace * batches


def scoring(project: Project, task: Task, images: Tensor) -> Iterator[Scoring]:
    """The protocol of the settings, measured; and the built-in ones, by the operations that they take.

    Args:
        images: what networks would be trained on, [n, c, h, w].
    """
    chosen = find_protocol(project, project.settings.evaluate.protocol)
    network = _network(project, chosen, task)
    costs = _Costs.measure(project, task, images, chosen, network)
    others = [find_protocol(project, name) for name in PROTOCOLS if name != chosen.name]
    for protocol in [chosen, *others]:
        trained = _network(project, protocol, task)
        epochs = protocol.for_images(len(images)).epochs * max(1, len(protocol.lrs))
        here = costs.of(trained, network, task)
        one = here.start + epochs * len(images) * here.image + protocol.checks * here.test
        seeds = project.settings.evaluate.seeds
        yield Scoring(protocol.name, trained.spec, epochs, one, seeds, seeds * one, protocol is chosen)


def _network(project: Project, protocol: Protocol, task: Task) -> Network:
    spec = protocol.network or project.settings.evaluate.network
    return build_network(spec, task.data.shape, task.data.num_classes)


@dataclass(frozen=True)
class _Costs:
    """Seconds before the first epoch, compilation included; of training on an image once; of a look at the test set."""

    start: float
    image: float
    test: float

    def of(self, other: Network, network: Network, task: Task) -> _Costs:
        """The costs of another network, by its operations.

        At the measured pace or the nominal one of the device, whichever is faster: a small network leaves it idle.
        """
        if other.spec == network.spec:
            return self
        threads = torch.get_num_threads() if task.device.type == "cpu" else 1
        pace = max(3 * network.flops / self.image, FLOPS_PER_SECOND[task.device.type] * threads)
        return _Costs(self.start, 3 * other.flops / pace, len(task.data.test_images) * other.flops / pace)

    @classmethod
    def measure(cls, project: Project, task: Task, images: Tensor, protocol: Protocol, network: Network) -> _Costs:
        """Train and test for a few batches, in the code that scores runs."""
        recipe = protocol.for_images(len(images))
        seeds = project.settings.evaluate.seeds
        flops = 3.0 * network.flops * len(images) * recipe.epochs * seeds
        compute = resolve_compute(project.settings.compute, flops)
        count = min(len(images), BATCHES * recipe.batch)
        rows = torch.randperm(len(images), generator=Key(0).generator())[:count]
        short = replace(
            protocol, steps=0, large=(), select="last", lrs=(), checks=1, recipe=replace(recipe, epochs=EPOCHS)
        )
        data = replace(task.data, test_images=task.data.test_images[:TESTS], test_labels=task.data.test_labels[:TESTS])
        evaluator = Evaluator(
            network, short, data, images[rows.to(images.device)], task.labels[rows], compute.apply(), compute.chunk,
            compute.compile, rate=1e-3,
        )  # fmt: skip
        stamps = [time.monotonic()]
        evaluator.score(0, lambda _: stamps.append(time.monotonic()))
        end = time.monotonic()
        epoch = (stamps[-1] - stamps[1]) / (len(stamps) - 2)
        batches = -(-len(images) // recipe.batch) / -(-count // recipe.batch)
        tests = (end - stamps[-1]) * len(task.data.test_images) / len(data.test_images)
        return cls(max(0.0, stamps[1] - stamps[0] - epoch), epoch * batches / len(images), tests)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free
