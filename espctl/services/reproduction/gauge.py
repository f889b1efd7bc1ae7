"""The pieces of a plan, and the seconds that each takes on this machine as busy as it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from esp import presets
from esp.core import Method, Task
from esp.data.dataset import Dataset
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.evaluation import Protocol
from esp.networks import NETWORKS
from esp.networks.flat import Network, canonical_spec
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, parse_parametrisation
from esp.parametrisation import build as build_parametrisation
from esp.registry import resolve
from esp.spaces import NORMALISED
from esp.training import Recipe
from espctl.services import condense
from espctl.services.estimating import probe
from espctl.services.project import Project
from espctl.services.reproduction import plan
from espctl.services.reproduction.plan import Asked, Scoring

MATCHED_ON = "convnet3"
"""What every set of the paper was condensed with."""


@dataclass(frozen=True)
class Trial:
    """A cell's condensation with everything that time is read from."""

    label: str
    name: str
    preset: presets.Preset
    options: Mapping[str, str]
    method: Method
    task: Task
    crowding: float = 1.0

    @cached_property
    def pace(self) -> probe.Pace:
        """Of its steps on this machine, with as many processes at work as there will be; of selections too."""
        return probe.condensation(self.method, self.task, seconds=1.0).times(self.crowding)

    @property
    def images(self) -> int:
        """Images that the set decodes to."""
        return len(self.task.labels)


@dataclass
class Gauge:
    """Measures the pieces of one request; what was measured once is not measured again.

    Attributes:
        on_look: told what is measured next.
        narrowing: by how much networks are narrower than the paper's, where they are.
    """

    project: Project
    asked: Asked
    on_look: Callable[[str], None]
    narrowing: int = 4
    _seconds: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.type == "cpu":
            torch.set_num_threads(self.asked.threads)

    @property
    def device(self) -> torch.device:
        """Where it will be computed."""
        return torch.device(self.asked.device)

    @cached_property
    def crowding(self) -> float:
        """How many times longer a piece takes beside the other processes than alone."""
        return probe.crowding(self.asked.jobs) if self.device.type == "cpu" else float(self.asked.jobs)

    @property
    def seeds(self) -> int:
        """Networks that score a set, unless the budget is short."""
        return self.asked.seeds or self.project.settings.evaluate.seeds

    @property
    def can_halve(self) -> bool:
        """Whether networks may be narrower still."""
        return self.device.type == "cpu" and not self.asked.network and self.narrowing == 4

    def halve(self) -> None:
        """Halve the networks' width."""
        self.narrowing *= 2

    def trial(
        self,
        dataset: str,
        ipc: int,
        label: str,
        level: str,
        changed: Mapping[str, str] | None = None,
        whitened: bool = True,
    ) -> Trial:
        """The condensation of a cell at a level, without experts.

        Args:
            changed: options beside those of the preset.
            whitened: False leaves out whitening, which takes a while to be fitted; for a first guess.

        Raises:
            EspError: the data set is not there, or the method does not work on it.
        """
        name = label.partition(":")[0]
        preset = "paper" if level == "paper" else "quick"
        spec = self.network(MATCHED_ON, level)
        space = "" if level == "paper" and whitened else NORMALISED
        base = presets.preset(name, preset, dataset, ipc, spec, space)
        options = {**plan.ABLATED.get(label, {}), **(changed or {})}
        method = condense.method_options(name, options, base.options)
        data = self.data(dataset, space or base.space)
        network = build_network(spec, data.shape, data.num_classes)
        stored, given = parse_parametrisation(method.default_parametrisation)
        frame = Frame(data.num_classes, ipc, data.shape)
        task = Task(data, network, build_parametrisation(stored, frame, given), None, self.device)
        if not method.needs_experts:
            method.check(task)
        return Trial(label, name, base, options, method, task, self.crowding)

    def data(self, dataset: str, space: str) -> Dataset:
        """The data set in a pixel space."""
        paths = self.project.paths
        return in_space(load_data(dataset, paths.data, paths.raw), space, paths.data)

    def network(self, base: str, level: str) -> str:
        """Spec of a network of the table: the one asked for, the full one, or on a CPU one that is narrower."""
        if self.asked.network and base == MATCHED_ON:
            return canonical_spec(self.asked.network)
        width = inspect.signature(resolve(NETWORKS, "network", base)).parameters.get("width")
        if level == "paper" or self.device.type != "cpu" or width is None:
            return canonical_spec(base)
        return canonical_spec(f"{base},width={max(8, int(width.default) // self.narrowing)}")

    def _measured(self, what: str, *key: Any, work: Callable[[], float]) -> float:
        if (what, *key) not in self._seconds:
            self.on_look(f"{what} {key[0]}")
            self._seconds[what, *key] = work() * self.crowding
        return self._seconds[what, *key]

    def training(self, network: Network, recipe: Recipe, data: Dataset, images: int = 0) -> float:
        """Seconds to train on one image once."""
        count = min(images or recipe.batch, recipe.batch)
        key = (network.spec, data.shape, count)
        return self._measured("training", *key, work=lambda: probe.training(network, recipe, data, self.device, count))

    def testing(self, network: Network, data: Dataset) -> float:
        """Seconds to test on one image."""
        return self._measured(
            "testing", network.spec, data.shape, work=lambda: probe.testing(network, data, self.device)
        )

    def scoring(self, trial: Trial, base: str, protocol: Protocol, seeds: int, level: str) -> Scoring:
        """One network of a set's scores, with its time."""
        data = trial.task.data
        network = build_network(self.network(base, level), data.shape, data.num_classes)
        recipe = protocol.for_images(trial.images)
        each = self.training(network, recipe, data, trial.images) * trial.images * recipe.epochs
        each += protocol.checks * self.testing(network, data) * len(data.test_images)
        return Scoring(base, network.spec, protocol.name, seeds, each * seeds)

    def expert_seconds(self, data: Dataset, network: Network, batch: int, epochs: int) -> float:
        """Of one expert."""
        epoch = self.training(network, Recipe(1, batch, 0.01), data) * len(data.train_images)
        return epochs * (epoch + self.testing(network, data) * min(2_000, len(data.test_images)))


def jobs_of(project: Project, jobs: int, device: str) -> tuple[int, int]:
    """Processes, and threads of each: as many processes as cores on a CPU, one on a GPU, unless told otherwise."""
    cores = len(os.sched_getaffinity(0))
    threads = project.settings.compute.threads
    jobs = jobs or (max(1, cores // max(1, threads)) if torch.device(device).type == "cpu" else 1)
    return jobs, threads or max(1, cores // jobs)
