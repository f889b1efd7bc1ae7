"""Doing one condensation run: from the request in its folder to the outcome in its folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from esp import artifact, condensed, files
from esp.core import Metrics, State, Task, condense, learned, synthetic_parameters
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.divergence import is_sound
from esp.errors import DivergedError, MismatchError
from esp.methods import METHODS
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame
from esp.parametrisation import build as build_parametrisation
from esp.registry import resolve
from esp.spaces import NORMALISED
from esp.trajectory import Experts, open_trajectory
from espctl.jobs import locks, signals
from espctl.jobs.compute import Compute, peak_memory

Progress = Callable[[int, dict[str, float | str]], None]
Watch = Callable[[Task, State], None]
LOGGED_STEPS = 1_000
_LABELS = ".labels.json."  # written by whoever labels the run, who does not hold it


@dataclass
class _Clock:
    """Seconds of work on a run, over all its parts."""

    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.begun


@contextlib.contextmanager
def locked(folder: Path, wait: float | None = locks.GLANCE, on_wait: locks.OnWait = locks.silent) -> Iterator[None]:
    """Hold a run's folder for this process alone; the lock dies with the process. What a killed one left is removed.

    Args:
        wait: seconds to wait for another process; None until it is done, and then `on_wait` hears of it.

    Raises:
        RunError: another process works on the run, or has removed it.
    """
    with locks.hold(folder, wait=wait, on_wait=on_wait):
        for unfinished in files.unfinished(folder):
            if not unfinished.name.startswith(_LABELS):
                unfinished.unlink(missing_ok=True)
        yield


def make_task(request: dict[str, Any], compute: Compute, cache: Path, home: Path) -> Task:
    """The task that a request describes.

    Raises:
        MismatchError: the data set or an expert has changed since the request was made.
    """
    device = compute.apply()
    data = load_data(request["dataset"], cache)
    if data.fingerprint != request["fingerprint"]:
        raise MismatchError(
            f"{data.name} has changed since this run was started", "restore the data set, or start a new run"
        )
    data = in_space(data, request.get("space", NORMALISED), cache)
    if "held_out" in request:
        data = data.held_out(request["held_out"])
    frame = Frame(data.num_classes, request["ipc"], data.shape)
    parametrisation = build_parametrisation(request["parametrisation"], frame, request["parametrisation_options"])
    network = build_network(request["network"], data.shape, data.num_classes)
    experts = _open_experts(request["experts"], home) if request["experts"] else None
    return Task(data, network, parametrisation, experts, device, compute.chunk, compute.compile)


def _open_experts(entries: list[dict[str, str]], home: Path) -> Experts:
    trajectories = tuple(open_trajectory(home / entry["path"]) for entry in entries)
    for trajectory, entry in zip(trajectories, entries, strict=True):
        if trajectory.digest != entry["sha256"]:
            raise MismatchError(
                f"{trajectory.path} has changed since this run was started", "restore the expert, or start a new run"
            )
    return Experts(trajectories)


def work(
    folder: Path, cache: Path, home: Path, checkpoint_every: float, on_progress: Progress, watch: Watch | None = None
) -> dict[str, Any]:
    """Carry a run to its end, from its last checkpoint if there is one; write and return its outcome.

    Args:
        folder: the run's, with `request.json` in it; the caller has it `locked`.
        cache: folder of converted data sets.
        home: folder that expert paths are relative to.
        checkpoint_every: seconds.
        on_progress: called with the number of steps done, and the latest metrics, images per second and memory.
            Where memory was short, `chunk` says what it was lowered to.
        watch: called with the task and the state after every step; what it raises ends the work.

    Raises:
        KeyboardInterrupt: a checkpoint was written.
        PausedError: the run can go on from its last checkpoint, of this moment if it could be written.
        EspError: the run cannot go on.
    """
    begun = datetime.now(UTC)
    described = files.read_json(folder / "request.json")
    request, compute = described["request"], Compute(**described["compute"])
    task = make_task(request, compute, cache, home)
    method = TypeAdapter(resolve(METHODS, "method", request["method"])).validate_python(request["method_options"])
    state, clock, chunk = _resume(folder, task, described["key"])
    task = task.chunked(chunk)
    run = _Run(folder, described["key"], task, clock, checkpoint_every, method.steps, state)
    steps = condense(method, task, request["seed"], state, run.lower)
    run.advance(_watched(steps, run, watch) if watch else steps, on_progress)
    return _finish(folder, described, run, begun)


def _watched(steps: Iterator[tuple[State, Metrics]], run: _Run, watch: Watch) -> Iterator[tuple[State, Metrics]]:
    # Watched before it is saved: a process that dies in between watches the same step again.
    for state, metrics in steps:
        watch(run.task.chunked(run.lowered or run.task.chunk), state)
        yield state, metrics


def _resume(folder: Path, task: Task, key: str) -> tuple[State | None, _Clock, int]:
    """State, time and chunk of the last checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return None, _Clock(), task.chunk
    found = artifact.load(path)
    if (found.meta.get("kind"), found.meta.get("key")) != ("checkpoint", key):
        raise MismatchError(f"{path} belongs to another run", "remove the checkpoint to begin the run anew")
    state = {
        name: tensor.clone() if name == "step" else tensor.clone().to(task.device)
        for name, tensor in found.tensors.items()
    }
    return state, _Clock(found.meta["seconds"]), found.meta.get("chunk", task.chunk)


@dataclass
class _Run:
    """A run on its way: its state after the latest step, and when that was last saved."""

    folder: Path
    key: str
    task: Task
    clock: _Clock
    every: float
    total: int
    state: State | None
    lowered: int = 0

    def lower(self, chunk: int) -> None:
        """A step did not fit into memory: from the next state on the run has this chunk."""
        self.lowered = chunk

    def advance(self, steps: Iterator[tuple[State, Metrics]], on_progress: Progress) -> None:
        """Go to the last step; log metrics, keep checkpoints."""
        try:
            with signals.stoppable(), signals.saving(self._save), _MetricsLog(self.folder / "metrics.jsonl") as log:
                self._follow(steps, log, on_progress)
        except KeyboardInterrupt:
            self._save()
            raise
        except DivergedError as error:
            self.state = dict(error.state) if error.state is not None else self.state
            self._save()
            raise
        except Exception:
            # A full disk or a lost device may not let it be saved; the last checkpoint is there then.
            with contextlib.suppress(Exception):
                self._save()
            raise

    def _follow(self, steps: Iterator[tuple[State, Metrics]], log: _MetricsLog, on_progress: Progress) -> None:
        saved, spacing = time.monotonic(), max(1, self.total // LOGGED_STEPS)
        first, begun = int(self.state["step"]) if self.state else 0, saved
        for self.state, metrics in steps:
            self.task = self.task.chunked(self.lowered or self.task.chunk)
            signals.check()
            done = int(self.state["step"])
            if metrics and (done % spacing == 0 or done == self.total):
                values = {name: float(value) for name, value in metrics.items()}
                log.add(done, values)
                on_progress(done, {**values, **self._cost(done - first, time.monotonic() - begun)})
            if time.monotonic() - saved >= self.every and done < self.total:
                self._save()
                saved = time.monotonic()

    def _cost(self, steps: int, seconds: float) -> dict[str, float | str]:
        """What is shown of the cost so far: synthetic images seen per second, and peak memory."""
        speed = steps * len(self.task.labels) / max(seconds, 1e-9)
        cost: dict[str, float | str] = {"images/s": round(speed, 1)}
        cost["memory"] = f"{peak_memory(self.task.device) / 1e6:.0f} MB"
        return {**cost, "chunk": f"{self.task.chunk}, memory was short"} if self.lowered else cost

    def _save(self) -> None:
        # On CUDA divergence is noticed some steps late; what came in between must not replace the last good state.
        if self.state is not None and is_sound(self.state):
            meta = {
                "kind": "checkpoint",
                "key": self.key,
                "step": int(self.state["step"]),
                "seconds": self.clock.seconds,
                "chunk": self.task.chunk,
            }
            artifact.save(self.folder / "checkpoint.safetensors", self.state, meta)


class _MetricsLog:
    """Appends one JSON line per logged step; lines after the step that a run resumes from are written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = -1

    def __enter__(self) -> _MetricsLog:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, step: int, values: dict[str, float]) -> None:
        if self._last < 0:
            self._cut(step)
        self._last = step
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def _cut(self, step: int) -> None:
        """Drop what an earlier part of the run logged at or after `step`, and a line that was cut short."""
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            with contextlib.suppress(ValueError):
                if json.loads(line)["step"] < step and line.endswith("\n"):
                    kept.append(line)
        self._file.close()
        files.write_text(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")


def _finish(folder: Path, described: dict[str, Any], run: _Run, begun: datetime) -> dict[str, Any]:
    """Write the synthetic set, then the outcome, then drop the checkpoint."""
    task, state = run.task, run.state
    assert state is not None  # `condense` yields at least the initial state of a run that starts
    request, path = described["request"], folder / "synthetic.safetensors"
    extra = {"run": folder.name, "method": request["method"], "seed": request["seed"], "key": described["key"]}
    extra |= {name: request[name] for name in ("study", "trial", "held_out") if name in request}
    parameters, beside = synthetic_parameters(state), learned(state)
    digest = condensed.save(
        path, request["parametrisation"], task.parametrisation, parameters, task.data, extra, beside
    )
    entry = {
        "name": "synthetic",
        "path": path.name,
        "sha256": files.file_sha256(path),
        "digest": digest,
        "bytes": path.stat().st_size,
    }
    outcome = {
        "state": "finished",
        "started": begun.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        "seconds": run.clock.seconds,
        "chunk": task.chunk,
        "peak_memory_bytes": peak_memory(task.device),
        "stored_numbers": condensed.stored_numbers(task.parametrisation, beside),
        "stored_bytes": 4 * condensed.stored_numbers(task.parametrisation, beside),  # float32
        "budget_numbers": task.parametrisation.frame.budget,
        "device": described["compute"]["device"],
        "artifacts": [entry],
        "error": None,
    }
    files.write_json(folder / "outcome.json", outcome)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return outcome
