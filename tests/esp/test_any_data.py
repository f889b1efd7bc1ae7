"""Every method on data sets of every kind: two classes to a hundred, one channel to four, square or not, and large."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esp.core import Task, condense, synthetic_parameters
from esp.data.dataset import Dataset
from esp.experts import Plan, build
from esp.methods import METHODS
from esp.networks.flat import build as build_network
from esp.parametrisation import PARAMETRISATIONS, Frame, decode_all
from esp.parametrisation import build as build_parametrisation
from esp.registry import resolve
from esp.training import Recipe
from esp.trajectory import Experts, open_trajectory

SMALL: dict[str, Any] = {
    "steps": 2, "real_batch": 4, "segment": 1, "restart": 2, "start_max": 1, "student_steps": 2, "decoder_pretrain": 1,
    "train_images": 8, "test_batch": 2, "outer": 2, "inner": 1, "targets": 200, "batch": 32,
}  # fmt: skip
SETS = {"two-grey": (2, (1, 8, 8)), "oblong": (3, (3, 12, 20)), "four-channels": (3, (4, 9, 11))}
HUNDRED = (100, (3, 64, 64))


def pairs() -> list[tuple[str, str]]:
    only = {name: getattr(resolve(METHODS, "method", name), "only_parametrisation", "") for name in METHODS}
    return [(name, stored) for name in METHODS for stored in PARAMETRISATIONS if only[name] in ("", stored)]


def make(name: str, **options: Any) -> Any:
    kind = resolve(METHODS, "method", name)
    wanted = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in {**SMALL, **options}.items() if key in wanted})


@pytest.fixture(scope="module")
def task_on(
    make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, tuple[int, int, int], str], Task]:
    """A task, with an expert, on a set of some classes and shape."""
    known: dict[tuple[int, tuple[int, int, int]], tuple[Dataset, Any, Experts]] = {}

    def make_task(classes: int, shape: tuple[int, int, int], stored: str) -> Task:
        if (classes, shape) not in known:
            data = make_dataset(classes=classes, each=4, tests=1, shape=shape)
            network = build_network("convnet3,width=4", shape, classes)
            folder = tmp_path_factory.mktemp("experts")
            path = build(Plan(network, Recipe(2, 64, 0.01)), 0, data, folder, torch.device("cpu"))
            known[classes, shape] = data, network, Experts((open_trajectory(Path(path)),))
        data, network, experts = known[classes, shape]
        made = build_parametrisation(stored, Frame(classes, 1, shape), {})
        return Task(data, network, made, experts)

    return make_task


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(("name", "stored"), pairs(), ids=["-".join(pair) for pair in pairs()])
def test_any_channels_sides_and_classes(task_on: Callable[..., Task], name: str, stored: str, kind: str) -> None:
    task, method = task_on(*SETS[kind], stored), make(name)
    *_, (state, _) = condense(method, task, 0)
    images = decode_all(task.parametrisation, synthetic_parameters(state))
    assert images.shape == (len(task.labels), *SETS[kind][1])
    assert images.isfinite().all()
    assert int(state["step"]) == method.steps


LARGE = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("cafe", "dsa", "idc") else name  # class by class, like dc
    for name, stored in pairs()
    if stored == "pixels"
]


@pytest.mark.parametrize("name", LARGE)
def test_a_hundred_classes_of_64_pixels(task_on: Callable[..., Task], name: str) -> None:
    task = task_on(*HUNDRED, "pixels")
    *_, (state, _) = condense(make(name, steps=1), task, 0)
    assert synthetic_parameters(state)["pixels"].shape == (100, *HUNDRED[1])


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes of new tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._enter(tensor.untyped_storage())
        return found

    def _enter(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self._known:
            self._known.add(place)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._leave, place, storage.nbytes())

    def _leave(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def peak(make_dataset: Callable[..., Dataset], name: str, classes: int, stored: str) -> int:
    """Bytes of one step with 64 real images of each class, 32 images at a time."""
    shape = (3, 8, 8)
    data = make_dataset(classes=classes, each=64, tests=1, shape=shape)
    made = build_parametrisation(stored, Frame(classes, 1, shape), {})
    task = Task(data, build_network("convnet3,width=4", shape, classes), made, chunk=32)
    method = make(name, real_batch=64, test_batch=64, steps=2, decoder_pretrain=0)
    run = condense(method, task, 0)
    next(run)
    gc.collect()
    with Peak() as seen:
        next(run)
    most: int = seen.most
    return most


@pytest.mark.parametrize(
    ("name", "stored"),
    [("cafe", "pixels"), ("dc", "pixels"), ("dm", "pixels"), ("idc", "pixels"), ("kfs", "latent")],
)
def test_memory_grows_with_the_synthetic_set_and_not_with_the_real_images_of_all_classes(
    make_dataset: Callable[..., Dataset], name: str, stored: str
) -> None:
    few, many = peak(make_dataset, name, 10, stored), peak(make_dataset, name, 20, stored)
    real_images = 10 * 64 * 3 * 8 * 8 * 4  # of the further classes
    assert 0 < many - few < real_images / 3, (few, many)
