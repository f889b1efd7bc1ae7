"""What a piece of work will cost on this machine, from a few real steps of it. Nothing is entered or kept."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from esp.core import Method, Metrics, State, Task, condense, synthetic_parameters
from esp.errors import DivergedError, InputError
from esp.methods import METHODS
from esp.parametrisation import decode_all
from esp.registry import resolve
from espctl.jobs import worker
from espctl.jobs.compute import Compute, peak_memory
from espctl.services import condense as condense_service
from espctl.services import experts as expert_service
from espctl.services.estimating import probe
from espctl.services.estimating.costs import Building, Scoring, building, free_bytes, scoring
from espctl.services.project import Project

LEAST, MOST, ENOUGH = 3, 40, 4.0
"""Timed steps at least and at most, and the seconds after which no more are taken."""

_METRIC_BYTES = 40
"""About what a name and a number take in `metrics.jsonl`."""


@dataclass(frozen=True)
class Estimate:
    """Cost of a condensation.

    Attributes:
        run: the id that it would have.
        steps, timed_steps: of the whole run, and how many of them were timed.
        start_seconds: loading, and what the method does before its first step.
        compile_seconds: what the first step took longer than the others; 0 when nothing is compiled.
        step_seconds: mean of the timed steps.
        seconds: of the whole run.
        peak_memory_bytes: as a run records it: of this process, or on CUDA of tensors on the device.
        set_bytes: the synthetic set.
        disk_bytes: the most that the run's folder takes while it goes on: set, metrics, and two checkpoints.
        experts: what must be trained first, if anything; the steps were then timed with stand-ins.
        scoring: by protocol, the one of the settings first.
    """

    run: str
    steps: int
    timed_steps: int
    start_seconds: float
    compile_seconds: float
    step_seconds: float
    seconds: float
    peak_memory_bytes: int
    set_bytes: int
    disk_bytes: int
    free_bytes: int
    compute: Compute
    experts: Building | None
    scoring: tuple[Scoring, ...]


@dataclass(frozen=True)
class _Timed:
    """Seconds before the first step, of the first step, and of the others on average; and the last state."""

    start: float
    first: float
    step: float
    count: int
    state: State


def condensation(project: Project, request: condense_service.Request) -> Estimate:
    """Take a few steps of a run and say what all of it costs.

    Raises:
        InputError: the disk has less space than the run needs.
        EspError: whatever is wrong with the request.
    """
    with with_experts(project, request) as (there, missing):
        prepared = condense_service.prepare(there, request)
        compute = Compute(**prepared.described["compute"])
        begun = time.monotonic()
        task = worker.make_task(prepared.described["request"], compute, there.paths.data, there.home)
        loading = time.monotonic() - begun
        method = method_of(prepared.described["request"])
        timed = _time(method, task, project.settings.condense.seed)
        memory = peak_memory(task.device)
        experts = building(*_missing(project, missing)) if missing else None
        scores = tuple(scoring(project, task, _images(task, timed.state)))
    steps, warm = method.steps, _warm_up(method, task, timed.step)
    compiling = max(0.0, timed.first - timed.step) if compute.compile and steps else 0.0
    made, state = _bytes(synthetic_parameters(timed.state)), _bytes(timed.state)
    lines = min(steps, 2 * worker.LOGGED_STEPS) * _METRIC_BYTES * 6
    disk, free = made + 2 * state + lines, free_bytes(project.paths.runs)
    _require(disk, free, project.paths.runs)
    start = loading + timed.start
    total = start + timed.first + max(0, steps - 1) * timed.step + warm if steps else start
    return Estimate(
        prepared.run, steps, timed.count, start, compiling, timed.step, total, memory, made, disk, free, compute,
        experts, scores,
    )  # fmt: skip


def method_of(request: dict[str, Any]) -> Method:
    """The method of a prepared request."""
    kind = resolve(METHODS, "method", request["method"])
    method: Method = TypeAdapter(kind).validate_python(request["method_options"])
    return method


def _time(method: Method, task: Task, seed: int) -> _Timed:
    """Take the first steps, as the worker does; a selection is carried out whole."""
    lighter = replace(method, decoder_pretrain=0) if getattr(method, "decoder_pretrain", 0) else method  # type: ignore[type-var]
    took: list[float] = []
    state: State = {}
    last = begun = time.monotonic()
    with contextlib.suppress(DivergedError):  # stand-ins for experts may lead anywhere; the time is right all the same
        for latest, metrics in condense(lighter, task, seed):
            state = latest
            _wait(metrics, task.device)
            now = time.monotonic()
            took.append(now - last)
            last = now
            begun = now if len(took) <= 2 else begun
            if len(took) >= 2 + MOST or (len(took) >= 2 + LEAST and now - begun > ENOUGH):
                break
    steps = took[2:] or took[1:2]
    return _Timed(took[0], sum(took[1:2]), fmean(steps) if steps else 0.0, len(took[2:]), state)


def _images(task: Task, state: State) -> Tensor:
    with torch.no_grad():
        return decode_all(task.parametrisation, synthetic_parameters(state)).detach()


def _wait(metrics: Metrics, device: torch.device) -> None:
    """Until the step is done, whose numbers the worker reads as well."""
    for value in metrics.values():
        float(value)
    probe.wait(device)


def _warm_up(method: Method, task: Task, step: float) -> float:
    """What a beginning with steps of another kind costs more, or less, than as many ordinary ones."""
    if not getattr(method, "decoder_pretrain", 0):
        return 0.0
    pace = probe.condensation(method, task)
    return pace.warm_steps * (pace.warm_up - step)


@contextlib.contextmanager
def with_experts(
    project: Project, request: condense_service.Request
) -> Iterator[tuple[Project, expert_service.NoExpertsError | None]]:
    """The project, and what is missing; where experts are, one that stands in for them is there for the time."""
    try:
        condense_service.prepare(project, request)
    except expert_service.NoExpertsError as error:
        with tempfile.TemporaryDirectory() as folder:
            probe.stand_in(Path(folder) / "stand-in", error.data, error.network, project.settings.experts.epochs)
            paths = replace(project.paths, experts=Path(folder))
            yield Project(replace(project.settings, paths=paths)), error
    else:
        yield project, None


def _missing(project: Project, error: expert_service.NoExpertsError) -> tuple[Project, expert_service.BuildRequest]:
    chosen = replace(project.settings.experts, network=error.network.spec)
    request = expert_service.BuildRequest(error.data.name, space=error.data.space)
    return Project(replace(project.settings, experts=chosen)), request


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _require(need: int, free: int, folder: Path) -> None:
    if need > free:
        raise InputError(
            f"the run needs {need / 1e9:.1f} GB below {folder}, which has {free / 1e9:.1f} GB free",
            "free some space, or choose another --home",
        )
