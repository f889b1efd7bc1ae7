"""How far runs are that other processes carry out, read from their folders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from espctl.services.project import Project, find_run
from espctl.store import folder as folders
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

POINTS = 240
ACTIVE = ("running", "queued")


@dataclass(frozen=True)
class Status:
    """A run at a moment.

    Attributes:
        step, steps: done, and how many there are; 0 of 0 for a selection.
        left: seconds until its end at its present pace, when that can be told.
        quiet: seconds since it last wrote a metric; a process that was killed shows here.
        curves: metric -> (step, value), thinned.
    """

    run: str
    name: str | None
    state: str
    error: str | None
    step: int
    steps: int
    seconds: float | None
    left: float | None
    quiet: float | None
    curves: Mapping[str, Sequence[tuple[int, float]]]


@dataclass
class _Curve:
    """The metrics of a run as they were when its file had this size and time."""

    mark: tuple[int, float] = (-1, 0.0)
    values: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


class Watcher:
    """Looks at runs again and again: at those that are named, or at all that are under way."""

    def __init__(self, project: Project, names: Sequence[str]) -> None:
        self._project = project
        self._asked = [find_run(project, name).id for name in names]
        self._seen: dict[str, _Curve] = {}
        self._steps: dict[str, int] = {}
        self._first: dict[str, tuple[int, float]] = {}

    def look(self) -> list[Status]:
        """Every run that is watched, in the order of their names, or of their creation."""
        records = self._records()
        unknown = [run.id for run in records if run.id not in self._steps]
        for run, request in store_runs.requests_of(self._project.store, unknown).items():
            steps = (request.get("method_options") or {}).get("steps")
            self._steps[run] = steps if isinstance(steps, int) else 0
        return [self._status(run) for run in records]

    def _records(self) -> list[RunRecord]:
        if self._asked:
            return [find_run(self._project, run) for run in self._asked]
        under_way = store_runs.list_runs(self._project.store, {"state": ACTIVE}, sort="created")
        here = {run.id for run in under_way}
        ended = [run for run in self._seen if run not in here]  # those that ended while they were watched stay
        return [*(store_runs.list_runs(self._project.store, {"id": ended}) if ended else ()), *under_way]

    def _status(self, run: RunRecord) -> Status:
        folder = self._project.home / run.folder
        curve = self._read(run.id, folder / "metrics.jsonl")
        step = max((points[-1][0] for points in curve.values.values() if points), default=0)
        running = run.state == "running"
        seconds = (datetime.now(UTC) - run.started).total_seconds() if running and run.started else run.seconds
        left = self._left(run.id, step, seconds) if running else None
        quiet = time.time() - curve.mark[1] if running and curve.mark[0] > 0 else None
        total = self._steps[run.id]
        return Status(run.id, run.name, run.state, run.error, step, total, seconds, left, quiet, dict(curve.values))

    def _left(self, run: str, step: int, seconds: float | None) -> float | None:
        """Seconds to the end, at the pace since the first look, or else since the run was started."""
        now = time.monotonic()
        first, begun = self._first.setdefault(run, (step, now))
        if step > first:
            return (now - begun) / (step - first) * (self._steps[run] - step)
        return seconds / step * (self._steps[run] - step) if seconds and step else None

    def _read(self, run: str, path: Path) -> _Curve:
        """The metrics, read again only when the file has changed."""
        known = self._seen.setdefault(run, _Curve())
        try:
            found = path.stat()
        except OSError:
            return known
        if (found.st_size, found.st_mtime) != known.mark:
            known.mark = (found.st_size, found.st_mtime)
            known.values = {}
            for name, step, value in folders.metrics(path.parent, POINTS):
                known.values.setdefault(name, []).append((step, value))
        return known
