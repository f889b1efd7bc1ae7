"""A data set, a network and experts so small that a test can run the real thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

from esp.core import Task
from esp.data.dataset import Dataset, fingerprint
from esp.data.raw import Raw, statistics
from esp.experts import Plan, build
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame
from esp.parametrisation import build as build_parametrisation
from esp.training import Recipe
from esp.trajectory import Experts, open_trajectory

torch.set_num_threads(1)
settings.register_profile("library", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("library")


def _split(patterns: torch.Tensor, each: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(len(patterns)).repeat_interleave(each)
    order = torch.randperm(len(labels), generator=generator)
    noise = torch.randn(len(labels), *patterns.shape[1:], generator=generator)
    return (patterns[labels] + 25 * noise).clamp(0, 255).to(torch.uint8)[order], labels[order]


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """A maker of sets whose classes are a random pattern each, plus noise: easy to learn, not trivial."""

    def make(
        classes: int = 3,
        each: int = 8,
        tests: int = 5,
        shape: tuple[int, int, int] = (3, 8, 8),
        seed: int = 0,
        flips: bool = True,
    ) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        patterns = 50 + 150 * torch.rand(classes, *shape, generator=generator)
        train, test = _split(patterns, each, generator), _split(patterns, tests, generator)
        names = tuple(f"class {i}" for i in range(classes))
        raw = Raw(*train, *test, names, flips=flips)
        return Dataset("tiny", *train, *test, names, *statistics(train[0]), "computed", flips, fingerprint(raw))

    return make


@pytest.fixture(scope="session")
def data(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset()


@pytest.fixture(scope="session")
def network() -> Network:
    return build_network("convnet3,width=4", (3, 8, 8), 3)


@pytest.fixture(scope="session")
def plan(network: Network) -> Plan:
    """Five epochs of three steps, with everything that a recipe can have switched on."""
    return Plan(network, Recipe(5, 8, 0.02, 0.9, 1e-4, milestones=(0.6,), reset_momentum=True))


@pytest.fixture(scope="session")
def experts(plan: Plan, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("experts")
    files = [build(plan, number, data, folder, torch.device("cpu")) for number in range(2)]
    return Experts(tuple(open_trajectory(file) for file in files))


LATENT = {"code": 8, "hidden": [2, 2], "decoders": 2}
"""12 codes per class, 24 images, at two images per class."""


@pytest.fixture
def make_task(data: Dataset, network: Network, experts: Experts) -> Callable[..., Task]:
    """A maker of tasks on the tiny set: by default two images per class, stored as pixels."""

    def make(stored: str = "pixels", ipc: int = 2, **changes: Any) -> Task:
        given = {"data": data, "network": network, "experts": experts, **changes}
        frame = Frame(given["data"].num_classes, ipc, given["data"].shape)
        options = LATENT if stored == "latent" else None
        return Task(parametrisation=build_parametrisation(stored, frame, options), **given)

    return make
