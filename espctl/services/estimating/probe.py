"""How fast this machine is at a piece of work, from a few steps of it: what plans and dry runs multiply.

Nothing here needs experts: methods that read trajectories are given a stand-in of the right size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esp import experts as library
from esp.core import Method, Task, condense
from esp.data.dataset import Dataset
from esp.errors import DivergedError
from esp.networks.flat import Network
from esp.rng import Key
from esp.training import Recipe, Trainer, accuracy
from esp.trajectory import Experts, open_trajectory

MOST_STEPS = 12
BATCHES, TESTS, FEW = 4, 512, 8


@dataclass(frozen=True)
class Pace:
    """Seconds of a condensation: once before its first step, and for each of its steps.

    Attributes:
        warm_up: seconds of each of the first `warm_steps`, where a method begins with steps of another kind.
    """

    start: float
    step: float
    warm_up: float = 0.0
    warm_steps: int = 0

    def seconds(self, steps: int) -> float:
        """Of a run of so many steps, about."""
        warm = min(self.warm_steps, steps)
        return self.start + warm * self.warm_up + (steps - warm) * self.step

    def times(self, factor: float) -> Pace:
        """The pace of a machine that takes so many times longer."""
        return Pace(self.start * factor, self.step * factor, self.warm_up * factor, self.warm_steps)


def condensation(method: Method, task: Task, seconds: float = 2.0) -> Pace:
    """Carry out the first steps of `method` on `task` for about so many seconds, and throw them away.

    The first step is left out where there are more, for it also pays for what is made once.
    """
    warm = int(getattr(method, "decoder_pretrain", 0))
    if warm:
        main = condensation(dataclasses.replace(method, decoder_pretrain=0), task, seconds)  # type: ignore[type-var]
        start, step = _time(method, task, seconds / 4)
        return Pace(start, main.step, step, warm)
    with provided(method, task) as (lighter, whole):
        return Pace(*_time(lighter, whole, seconds))


def _time(method: Method, task: Task, seconds: float) -> tuple[float, float]:
    begun = last = time.monotonic()
    took: list[float] = []
    try:
        for _ in condense(method, task, 0):
            wait(task.device)
            now = time.monotonic()
            took.append(now - last)
            last = now
            if now - begun > seconds or len(took) > MOST_STEPS:
                break
    except DivergedError:  # a stand-in is no expert; the step took its time all the same
        took.append(time.monotonic() - last)
    steps = took[2:] or took[1:]
    return took[0], sum(steps) / len(steps) if steps else 0.0


@contextlib.contextmanager
def provided(method: Method, task: Task) -> Iterator[tuple[Method, Task]]:
    """The task with a stand-in for experts, from its epoch 0 alone, where the method needs some."""
    if not method.needs_experts:
        yield method, task
        return
    names = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    segment = int(getattr(method, "segment", 1))
    lighter: Method = dataclasses.replace(method, start_max=0) if "start_max" in names else method  # type: ignore[type-var]
    with tempfile.TemporaryDirectory() as folder:
        expert = open_trajectory(stand_in(Path(folder), task.data, task.network, segment))
        yield lighter, dataclasses.replace(task, experts=Experts((expert,)))


def stand_in(folder: Path, data: Dataset, network: Network, epochs: int) -> Path:
    """Write an expert of so many epochs, each of a few images: right in its size, and in nothing else."""
    few = dataclasses.replace(
        data,
        train_images=data.train_images[:FEW],
        train_labels=data.train_labels[:FEW],
        test_images=data.test_images[:FEW],
        test_labels=data.test_labels[:FEW],
    )
    plan = library.Plan(network, Recipe(epochs, FEW, 1e-2, augmentation="none"), space=data.space)
    return library.build(plan, 0, few, folder, torch.device("cpu"))


def training(network: Network, recipe: Recipe, data: Dataset, device: torch.device, images: int = 0) -> float:
    """Seconds to train on one image once, from a few batches of `recipe` on real images.

    Args:
        images: as many as the set has that will be trained on: a smaller set makes smaller batches; 0 for plenty.
    """
    count = min(recipe.batch, images or recipe.batch, len(data.train_images))
    recipe = dataclasses.replace(recipe, epochs=BATCHES, batch=count)
    trainer = Trainer(network, recipe, data.flips, device)
    rows, labels = data.train_images[:count], data.train_labels[:count]
    took = _intervals(trainer.epochs(trainer.start(Key(0)), rows, labels, data.normalise, Key(0)), device)
    return min(took[1:]) / count


def testing(network: Network, data: Dataset, device: torch.device) -> float:
    """Seconds to test on one image."""
    theta = network.init(Key(0)).to(device)
    network = network.freeze(network.first_statistics().to(device))
    rows, labels = data.test_images[:TESTS], data.test_labels[:TESTS]
    return _timed(lambda: accuracy(network, theta, rows, labels, data.normalise, TESTS), device) / len(rows)


def _intervals(work: Iterator[object], device: torch.device) -> list[float]:
    took, last = [], time.monotonic()
    for _ in work:
        wait(device)
        now = time.monotonic()
        took.append(now - last)
        last = now
    return took


def _timed(work: Callable[[], Tensor | float], device: torch.device) -> float:
    work()
    wait(device)
    begun = time.monotonic()
    work()
    wait(device)
    return time.monotonic() - begun


def crowding(jobs: int) -> float:
    """How many times longer a CPU takes for a piece of work when `jobs` of them are done at once: 1 on free cores.

    Two processors that share one core, or its way to memory, count as two and do not work twice as much.
    """
    if jobs <= 1:
        return 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images, kernels = torch.ones(64, 32, 16, 16), torch.ones(32, 32, 3, 3)

    def work(_: int = 0) -> None:
        for _ in range(60):
            torch.conv2d(images, kernels, padding=1)

    try:
        work()
        alone = min(_seconds(work) for _ in range(3))
        with ThreadPoolExecutor(jobs) as crew:  # torch lets go of the interpreter while it computes
            together = min(_seconds(lambda: list(crew.map(work, range(jobs)))) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    return max(1.0, min(together / alone, jobs))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def wait(device: torch.device) -> None:
    """Until the device has done what it was given: a GPU returns before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
