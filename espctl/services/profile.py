"""Where the time of a run's steps goes, against what its operations must take. Nothing is kept but a trace."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esp import files, parts
from esp.core import Method, Metrics, State, Task, condense
from esp.errors import InputError
from espctl.jobs import worker
from espctl.jobs.compute import Compute
from espctl.services import condense as condense_service
from espctl.services.estimating import estimate, probe
from espctl.services.project import Project

WARM, STEPS, ENOUGH = 3, 20, 10.0
"""Steps before anything is timed, steps that are profiled at most, and the seconds after which no more are timed."""
STEP, OTHER = "step", "other"
_LISTED = 15


@dataclass(frozen=True)
class Part:
    """A part of a step (`esp.parts`) or an operator: seconds and calls of one step, and its share of the time."""

    name: str
    seconds: float
    share: float
    calls: float


@dataclass(frozen=True)
class Floor:
    """What the operations of one step take at the pace of this machine.

    Attributes:
        operations: floating-point operations of convolutions and matrix products; an addition is one of them.
        passes: the same, in passes of the synthetic set forward through the network.
        pace: operations a second of each kind of them, on tensors of the step's own size.
        seconds: of one step.
        times: how many times longer the step takes.
    """

    operations: int
    passes: float
    pace: dict[str, float]
    seconds: float
    times: float


@dataclass(frozen=True)
class Profile:
    """Where the time goes.

    Attributes:
        run: the id that it would have.
        images: decoded synthetic images.
        steps: profiled.
        step_seconds: of one step, without the profiler.
        profiled_seconds: of one step, with it: what parts and operators are shares of.
        stand_ins: whether experts are missing, and others stood in for them.
        trace: a Chrome trace, compressed.
    """

    run: str
    compute: Compute
    images: int
    steps: int
    step_seconds: float
    profiled_seconds: float
    floor: Floor
    parts: tuple[Part, ...]
    operators: tuple[Part, ...]
    stand_ins: bool
    trace: Path
    trace_bytes: int


def condensation(project: Project, request: condense_service.Request) -> Profile:
    """Take a few steps of a run under the profiler.

    Raises:
        InputError: the method takes no steps.
        EspError: whatever is wrong with the request.
    """
    with estimate.with_experts(project, request) as (there, missing):
        prepared = condense_service.prepare(there, request)
        asked = prepared.described["request"]
        compute = Compute(**prepared.described["compute"])
        task = worker.make_task(asked, compute, there.paths.data, there.home)
        method = estimate.method_of(asked)
        if not method.steps:
            raise InputError(f"{asked['method']} chooses images without any steps", "profile a method that has some")
        method = replace(method, decoder_pretrain=0) if getattr(method, "decoder_pretrain", 0) else method  # type: ignore[type-var]
        seed = project.settings.condense.seed
        steps = _endless(method, task, seed)
        _ahead(steps, WARM, task)
        plain = _timed(steps, task)
        count = max(1, min(STEPS, round(ENOUGH / max(plain, 1e-9))))
        path = project.paths.logs / f"{prepared.run}-profile.json.gz"
        events, profiled = _profiled(steps, count, task, path)
        floor = _floor(method, task, seed, plain)
    return Profile(
        prepared.run, compute, len(task.labels), count, plain, profiled, floor, _parts(events, count, profiled),
        _operators(events, count, task.device), missing is not None, path, path.stat().st_size,
    )  # fmt: skip


def _endless(method: Method, task: Task, seed: int) -> Iterator[tuple[State, Metrics]]:
    """Steps of a run, which begins anew when it is through."""
    while True:
        yield from ((state, metrics) for state, metrics in condense(method, task, seed) if metrics)


def _ahead(steps: Iterator[tuple[State, Metrics]], count: int, task: Task) -> None:
    for _ in range(count):
        next(steps)
    probe.wait(task.device)


def _timed(steps: Iterator[tuple[State, Metrics]], task: Task) -> float:
    """Mean seconds of a step without the profiler."""
    begun, done = time.perf_counter(), 0
    while done < STEPS and (not done or time.perf_counter() - begun < ENOUGH):
        _ahead(steps, 1, task)
        done += 1
    return (time.perf_counter() - begun) / done


def _profiled(steps: Iterator[tuple[State, Metrics]], count: int, task: Task, path: Path) -> tuple[Any, float]:
    """The events of `count` steps, and mean seconds of a step; the trace is written to `path`."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if task.device.type == "cuda" else [])]
    seconds = []
    with profile(activities=kinds) as watched:
        for _ in range(count):
            begun = time.perf_counter()
            with record_function(STEP):
                _ahead(steps, 1, task)
            seconds.append(time.perf_counter() - begun)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(written))
        with files.aside(path) as temporary, written.open("rb") as plain, gzip.open(temporary, "wb") as packed:
            shutil.copyfileobj(plain, packed)
    return watched, fmean(seconds)


def _parts(watched: Any, count: int, step: float) -> tuple[Part, ...]:
    """Seconds of each part in a step; the outermost where one is inside another. The rest of the step is `OTHER`."""
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in watched.events():
        if event.name.startswith(parts.PREFIX) and not any(map(_is_part, _above(event))):
            name = event.name.removeprefix(parts.PREFIX)
            seconds[name] = seconds.get(name, 0.0) + event.cpu_time_total / 1e6 / count
            calls[name] = calls.get(name, 0) + 1
    found = [Part(name, value, value / step, calls[name] / count) for name, value in seconds.items()]
    rest = max(0.0, step - sum(seconds.values()))
    return (*sorted(found, key=lambda one: -one.seconds), Part(OTHER, rest, rest / step, 1))


def _above(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _is_part(event: Any) -> bool:
    return bool(event.name.startswith(parts.PREFIX))


def _operators(watched: Any, count: int, device: torch.device) -> tuple[Part, ...]:
    """The operators that take longest by themselves: on CUDA the kernels' time, else that of the processor."""
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = [
        (event.key, getattr(event, own) / 1e6 / count, event.count / count)
        for event in watched.key_averages()
        if not event.is_user_annotation and event.key != STEP and not event.key.startswith(parts.PREFIX)
    ]
    total = sum(seconds for _, seconds, _ in found) or 1.0
    found.sort(key=lambda one: -one[1])
    return tuple(Part(name, seconds, seconds / total, calls) for name, seconds, calls in found[:_LISTED] if seconds)


def _floor(method: Method, task: Task, seed: int, step: float) -> Floor:
    """Count the operations of one step, and time some of the same kinds."""
    eager = replace(task, compile=False)  # compiled programs hide what they consist of
    state = next(condense(method, eager, seed))[0]
    steps = condense(method, eager, seed, state)
    with _Counter() as counter:
        next(steps)
    pace = {kind: _pace(kind, task) for kind in counter.operations}
    seconds = sum(count / pace[kind] for kind, count in counter.operations.items())
    total = sum(counter.operations.values())
    forward = task.network.flops * len(task.labels)
    return Floor(total, total / forward, pace, seconds, step / seconds if seconds else float("inf"))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by kind. Torch's own counter follows modules, which functional derivatives leave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (packet := func._overloadpacket) in flop_registry:
            kind = "convolution" if "convolution" in str(packet) else "matrix product"
            count = flop_registry[packet](*args, **(kwargs or {}), out_val=result)
            self.operations[kind] = self.operations.get(kind, 0) + count
        return result


def _pace(kind: str, task: Task) -> float:
    """Operations a second of a convolution as in the middle of the network, or of a product of square matrices."""
    if kind == "matrix product":
        a = torch.ones(1024, 1024, device=task.device)
        return 2 * 1024**3 / _fastest(lambda: a @ a, task.device)
    count = min(task.chunk, len(task.labels))
    width = max(8, min(128, task.network.features // 16))
    images = torch.ones(count, width, 16, 16, device=task.device)
    kernels = torch.ones(width, width, 3, 3, device=task.device)
    work = 2 * count * width * width * 9 * 16 * 16
    return work / _fastest(lambda: torch.conv2d(images, kernels, padding=1), task.device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(10):
        probe.wait(device)
        begun = time.perf_counter()
        work()
        probe.wait(device)
        found.append(time.perf_counter() - begun)
    return min(found)
