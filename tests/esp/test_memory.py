"""A step that does not fit into memory is repeated with half the chunk, and nothing else is different."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esp.core import State, Task, condense
from esp.data.dataset import Dataset
from esp.errors import InputError, OutOfMemoryError
from esp.experts import Plan, build
from esp.memory import fitted, is_out_of_memory
from esp.methods import METHODS
from esp.networks.convnet import ConvNet
from esp.networks.flat import build as build_network
from esp.registry import resolve
from esp.training import Recipe
from esp.trajectory import Experts, open_trajectory

SMALL: dict[str, Any] = {
    "steps": 4, "real_batch": 5, "segment": 1, "restart": 2, "start_max": 1, "student_steps": 2, "decoder_pretrain": 0,
    "train_images": 6, "test_batch": 2, "outer": 2, "inner": 1, "targets": 18, "start": "noise",
}  # fmt: skip
ROOM = {"images": 10**6, "calls": 10**9}
"""How many images the network below has memory for, and how often it has more than that at first."""


class Hungry(ConvNet):
    """Needs memory for each image, as all networks do; has little of it from some call on."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        take(x)
        return super().forward(x)

    def levels(self, x: Tensor) -> list[Tensor]:
        take(x)
        return super().levels(x)


class HungryData(Dataset):
    """The same of a data set, for methods without a network."""

    def normalise(self, images: Tensor) -> Tensor:
        take(images)
        return super().normalise(images)


def take(images: Tensor) -> None:
    ROOM["calls"] -= 1
    if ROOM["calls"] < 0 and len(images) > ROOM["images"]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def hungry(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Hungry(shape, classes, 3, 4, "instance")


@pytest.fixture(autouse=True)
def _room() -> Any:
    ROOM.update(images=10**6, calls=0)
    yield
    ROOM.update(images=10**6, calls=0)


@pytest.fixture(scope="module")
def hungry_experts(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    network, folder = build_network(f"{__name__}:hungry", (3, 8, 8), 3), tmp_path_factory.mktemp("hungry")
    path = build(Plan(network, Recipe(2, 8, 0.02)), 0, data, folder, torch.device("cpu"))
    return Experts((open_trajectory(path),))


@pytest.fixture
def hungry_task(make_task: Callable[..., Task], hungry_experts: Experts) -> Callable[..., Task]:
    def make(name: str, stored: str, **changes: Any) -> Task:
        network = build_network(f"{__name__}:hungry", (3, 8, 8), 3)
        task = make_task(stored, network=network, experts=hungry_experts, **changes)
        if name == "kip":
            entries = {field.name: getattr(task.data, field.name) for field in fields(task.data)}
            task = replace(task, data=HungryData(**entries))
        return task

    return make


def make(name: str, **options: Any) -> Any:
    kind = resolve(METHODS, "method", name)
    wanted = {field.name for field in fields(kind)}
    given = {**SMALL, **options, **({"batch": 0} if name == "mtt" else {"batch": 3})}
    return kind(**{key: value for key, value in given.items() if key in wanted})


def states(method: Any, task: Task, begin: State | None = None) -> tuple[list[State], list[int]]:
    chunks: list[int] = []
    return [state for state, _ in condense(method, task, 3, begin, chunks.append)], chunks


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CASES = [(name, stored) for name in METHODS for stored in ("pixels", "latent")]
CASES = [
    (name, stored)
    for name, stored in CASES
    if name != "random" and getattr(resolve(METHODS, "method", name), "only_parametrisation", stored) == stored
]


@pytest.mark.parametrize(("name", "stored"), CASES, ids=["-".join(case) for case in CASES])
def test_the_result_is_that_of_the_chunk_that_fits(hungry_task: Callable[..., Task], name: str, stored: str) -> None:
    method = make(name)
    wanted, nothing = states(method, hungry_task(name, stored, chunk=3))
    assert nothing == []
    ROOM["images"] = 4
    found, chunks = states(method, hungry_task(name, stored, chunk=12))
    assert chunks == [6, 3]
    assert len(found) == len(wanted)
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("name", "stored"), [("esp", "latent"), ("dsa", "pixels"), ("idc", "pixels")])
def test_a_step_that_failed_in_its_middle_leaves_nothing_behind(
    hungry_task: Callable[..., Task], name: str, stored: str
) -> None:
    method = make(name)
    whole, _ = states(method, hungry_task(name, stored, chunk=12))
    counted = 0 - ROOM["calls"]
    ROOM.update(images=4, calls=counted // 2)  # memory gets short somewhere in the second or third step
    found, chunks = states(method, hungry_task(name, stored, chunk=12))
    assert chunks == [6, 3]
    equal = [same(one, other) for one, other in zip(found, whole, strict=True)]
    sound = equal.index(False)
    assert 1 < sound < len(whole), "the first steps are those of the chunk that was asked"
    ROOM.update(images=10**6, calls=0)
    rest, _ = states(method, hungry_task(name, stored, chunk=3), whole[sound - 1])
    assert all(same(one, other) for one, other in zip(found[sound:], rest, strict=True))


def test_one_image_at_a_time_is_the_least(hungry_task: Callable[..., Task]) -> None:
    task = hungry_task("mtt", "pixels", chunk=4)
    ROOM["images"] = 0
    with pytest.raises(OutOfMemoryError, match="out of memory in step 1, even one image at a time") as caught:
        states(make("mtt"), task)
    assert "--ipc" in caught.value.hint
    assert "student_steps=... (it is 2)" in caught.value.hint


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    with pytest.raises(InputError):
        fitted(lambda _: _raise(InputError("chunk")), 8, "a step", "")
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    for error in (MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory")):
        assert is_out_of_memory(error)
    wrapped = RuntimeError("a compiled program failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


def _raise(error: Exception) -> None:
    raise error


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    held: list[weakref.ref[Tensor]] = []

    def attempt(chunk: int) -> int:
        assert all(tensor() is None for tensor in held)
        tensor = torch.zeros(chunk)
        held.append(weakref.ref(tensor))
        if chunk > 2:
            raise MemoryError
        return chunk

    assert fitted(attempt, 8, "a step", "") == (2, 2)


REAL = """
import resource, torch
from esp.memory import fitted

torch.set_num_threads(1)
images = torch.zeros(256, 3, 32, 32)
weight = torch.zeros(256, 3, 3, 3)
now = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + 100 * 2**20,) * 2)

def attempt(chunk):
    return sum(float(torch.nn.functional.conv2d(part, weight, padding=1).sum()) for part in images.split(chunk))

print(*fitted(attempt, 256, "the test", ""))
"""


def test_memory_that_the_system_refuses(tmp_path: Path) -> None:
    """256 images make activations of 268 MB, and there are 100."""
    (tmp_path / "real.py").write_text(REAL)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "real.py")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value, chunk = done.stdout.split()
    assert float(value) == 0
    assert 1 <= int(chunk) <= 64
