"""What studies found, and their copy in the database, which their own folders and those of their runs can renew."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from esp import files
from esp.errors import closest_hint
from espctl.errors import RunError
from espctl.jobs import pool
from espctl.services.experts import relative
from espctl.services.project import Project
from espctl.services.tuning.plan import Plan
from espctl.services.tuning.space import from_json
from espctl.services.tuning.study import Point, Study, names
from espctl.store import runs as store_runs
from espctl.store.records import StudyRecord, TrialRecord
from espctl.store.studies import keep_studies, record_study


@dataclass(frozen=True)
class View:
    """A study as people see it.

    Attributes:
        points: every trial that was begun.
        best: the finished trial of the highest score on held-out images; chosen as the best of many, so optimistic.
        default: the first trial, of the method's own options.
        storage: Optuna's file, relative to the project's home.
    """

    name: str
    plan: Plan
    created: datetime
    storage: str
    points: tuple[Point, ...]
    best: Point | None
    default: Point | None

    @property
    def states(self) -> dict[str, int]:
        """How many trials are in which state."""
        return dict(Counter(point.state for point in self.points))

    @property
    def scoring(self) -> str:
        """How a trial is scored, in words."""
        plan, many = self.plan, "network" if self.plan.seeds == 1 else "networks"
        return f"{plan.protocol}@{plan.epochs}, {plan.seeds} {many}, on {plan.held_out:g} of the training images"


def views(project: Project) -> list[View]:
    """Every study, oldest first; the database learns what it has not heard of."""
    found = names(project.paths.studies)
    if not project.store.read_only:
        keep_studies(project.store, found)
    return [show(project, name) for name in found]


def show(project: Project, name: str) -> View:
    """A study, by its name.

    Raises:
        RunError: there is none of this name.
    """
    study = open_study(project, name)
    refresh(project, study)
    return view(project, study)


def open_study(project: Project, name: str) -> Study:
    """A study, by its name.

    Raises:
        RunError: there is none of this name.
    """
    known = names(project.paths.studies)
    if name not in known:
        hint = closest_hint(name, known) if known else "start one with: espctl tune --dataset NAME --ipc N"
        raise RunError(f"there is no study {name!r}", hint)
    return Study(project.paths.studies / name)


def best(project: Project, name: str) -> tuple[View, Point]:
    """A study and its best trial.

    Raises:
        RunError: no trial of it has finished.
    """
    found = show(project, name)
    if found.best is None:
        raise RunError(f"no trial of the study {name} has finished", f"go on with: espctl tune --study {name}")
    return found, found.best


def importance(project: Project, name: str) -> dict[str, float]:
    """Share of each option in what makes a trial good (PED-ANOVA), the largest first; they add up to 1.

    Raises:
        RunError: too few trials have finished to tell.
    """
    from optuna.importance import get_param_importances

    study = open_study(project, name)
    scores = {point.value for point in study.points() if point.value is not None}
    if len(scores) < 3:
        raise RunError(
            f"the study {name} has {len(scores)} different scores, too few to tell what matters",
            f"try more: espctl tune --study {name} --trials N",
        )
    with study.shared() as found:
        return get_param_importances(found)


def request_of_best(project: Project, name: str) -> tuple[Plan, dict[str, str], str]:
    """For a run with the best options of a study: its plan, those options, and where they come from.

    The steps to which the trials were cut are not among them.
    """
    found, point = best(project, name)
    return found.plan, {**found.plan.options, **point.options}, f"{name} {point.number}"


def refresh(project: Project, study: Study) -> None:
    """Bring the database's copy of a study up to date, and the states of its runs; a read-only one stays as it is."""
    if project.store.read_only:
        return
    points = study.points()
    busy = {point.number for point in points if point.state == "running" and study.is_worked_on(point.number)}
    _renew_runs(project, {point.run: point.number in busy for point in points if point.run})
    rows = [TrialRecord(point.number, point.run, point.state, point.value) for point in points]
    record_study(project.store, _study_record(project, study), rows)


def view(project: Project, study: Study) -> View:
    """A study as it is now."""
    points = study.points()
    finished = [point for point in points if point.value is not None]
    top = max(finished, key=lambda point: (point.value or 0.0, -point.number), default=None)
    first = next((point for point in finished if point.number == 0), None)
    storage = relative(project, study.database)
    return View(study.name, study.plan, study.created, storage, tuple(points), top, first)


def record(project: Project, study: Study, event: pool.Event) -> None:
    """Enter what a worker says into the database."""
    if event["kind"] not in ("begun", "ended"):
        return
    number, run_id = event["trial"], event["run"]
    if run_id is not None:
        _renew_runs(project, {run_id: event["kind"] == "begun"})
    row = TrialRecord(number, run_id, event.get("state", "running"), event.get("value"))
    record_study(project.store, _study_record(project, study), [row])


def _renew_runs(project: Project, runs: Mapping[str, bool]) -> None:
    """Enter the runs of trials that the database does not know, and the states of those that it does.

    Args:
        runs: run -> whether somebody works on it.
    """
    known = {record.id: record for record in store_runs.list_runs(project.store, {"id": list(runs)})} if runs else {}
    for run_id, working in runs.items():
        folder, record = project.folder_of(run_id), known.get(run_id)
        if not (folder / "request.json").is_file():
            continue  # removed by somebody; the trial stays
        if (folder / "outcome.json").is_file():
            if record is None or record.state not in ("finished", "failed", "pruned"):
                store_runs.record_outcome(project.store, folder)
            continue
        if record is None:
            with contextlib.suppress(RunError):  # another process has just entered it
                store_runs.insert_run(project.store, files.read_json(folder / "request.json"), folder)
        state = "running" if working else "interrupted"
        if record is None or record.state != state:
            store_runs.set_state(project.store, run_id, state)


def _study_record(project: Project, study: Study) -> StudyRecord:
    plan = study.plan
    storage = relative(project, study.database)
    return StudyRecord(study.name, plan.dataset, plan.method, plan.ipc, asdict(plan), storage, study.created)


def space_of(plan: Plan) -> dict[str, str]:
    """The space of a study in the words of `--space`."""
    return {option: str(dimension) for option, dimension in from_json(plan.space).items()}
