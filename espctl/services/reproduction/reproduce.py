"""Carrying out a plan: experts, then one cell after another, each with its scores; and the table that comes of it.

Every piece is found again by its request: a plan that was stopped goes on with what is missing. A cell that fails says
why, and the others go on. Processes write files; the database is written here alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp import files
from esp.errors import EspError
from espctl.errors import Interrupted, StoreError, may_pass, translate
from espctl.jobs import logs, pool, signals, worker
from espctl.services import evaluate
from espctl.services import experts as expert_service
from espctl.services.project import Project
from espctl.services.reproduction.pending import (
    Item,
    item_of,
    missing,
    networks,
    prepared_experts,
    settings_of,
    with_experts,
)
from espctl.services.reproduction.plan import ExpertWork, Plan, Problem, Work
from espctl.store import folder as folders
from espctl.store import runs as store_runs

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Result:
    """How a cell's work ended: an empty message when all of it is done."""

    number: int
    run: str
    message: str = ""
    hint: str = ""


@dataclass
class Course:
    """How far a plan is: problems and runs by number of the work, and fractions of the pieces that are on their way."""

    problems: dict[int, Problem] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)


def carry_out(project: Project, made: Plan, on_progress: Progress, on_result: Callable[[str], None]) -> Course:
    """Do what is missing of a plan.

    Args:
        on_progress: called with the seconds of the estimate that are done, and what is on its way.
        on_result: called with a sentence for every piece that is done or failed.

    Raises:
        Interrupted: the same call goes on.
    """
    course, beside = Course(), settings_of(project, made)
    with signals.stoppable("the same command goes on with what is missing"):
        try:
            stores = [_experts(beside, made, work, course, on_progress, on_result) for work in made.experts]
            items = _items(beside, made, stores, course)

            def on_event(event: dict[str, Any]) -> None:
                _heard(beside, made, course, event, on_progress)

            for item, result in pool.run_all(do, items, made.asked.jobs, on_event):
                _record(beside, item, result, course)
                on_result(_sentence(item.work, result))
        except (KeyboardInterrupt, EspError):
            with contextlib.suppress(StoreError):  # where the disk is full for the database too
                _leave(beside, course)
            raise
    return course


def _experts(
    project: Project,
    made: Plan,
    work: ExpertWork,
    course: Course,
    on_progress: Progress,
    on_result: Callable[[str], None],
) -> str | EspError:
    """Train what is missing of some experts: the name of their store, or why there is none."""
    before = sum(course.done.values())
    try:
        built, items = prepared_experts(project, work)
        each, total = work.seconds / work.count, len(items)
        epochs: dict[int, int] = {}

        def on_event(event: dict[str, Any]) -> None:
            epochs[event["number"]] = event["epoch"]
            on_progress(before + each * sum(epochs.values()) / work.epochs, f"experts of {work.dataset}")

        for expert in expert_service.build(with_experts(project, work), items, on_event):
            on_result(f"expert {expert.number} of {expert.network} on {expert.dataset}: {expert.accuracy:.1%}")
        course.done[f"experts {built.store}"] = each * total
        return built.store
    except (EspError, OSError, RuntimeError) as error:
        if isinstance(error, Interrupted) or may_pass(translate(error)):
            raise translate(error) from error
        return translate(error)


def _items(project: Project, made: Plan, stores: Sequence[str | EspError], course: Course) -> list[Item]:
    """The works that are not finished, prepared; those that cannot be are problems."""
    items = []
    for number, work in enumerate(made.works):
        try:
            item = item_of(project, made, stores, number)
        except EspError as error:
            course.problems[number] = _problem(work, error.message, error.hint)
            continue
        course.runs[number] = item.run
        if missing(project, item):
            items.append(item)
    # Several processes begin with the longest, or one would be left alone with it at the end.
    return sorted(items, key=lambda item: -item.work.whole) if made.asked.jobs > 1 else items


def do(item: Item, report_event: pool.Report) -> Result:
    """Condense and score one cell, in any process; the database is not opened."""
    project = Project(item.settings)
    folder = project.folder_of(item.run)
    event: dict[str, Any] = {"number": item.number, "run": item.run}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with worker.locked(folder, wait=None):  # another plan, or somebody, may just be making it
            _enter(item, folder)
            report_event({**event, "state": "running"})
            if not (folder / "outcome.json").is_file():
                _condense(item, project, folder, _steps(item, event, report_event))
            record = folders.read(folder, project.home).run
            report_event({**event, "state": "scoring"})
            everything = networks(project, record, item.work)
            for group in evaluate.stacks([network for network in everything if not network.path.exists()]):
                first = everything.index(group[0])
                trained = evaluate.train(group, _epochs(item, event, first, group, report_event))
                if trained.error:
                    raise trained.error
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, it ends this cell and not the others, unless they would end alike
        found = translate(error)
        if may_pass(found):
            raise found from error
        return Result(item.number, item.run, found.message, found.hint)
    return Result(item.number, item.run)


def _condense(item: Item, project: Project, folder: Path, on_progress: worker.Progress) -> None:
    every, asked = project.settings.compute.checkpoint_every, item.described["request"]
    with logs.following(project.settings.logging, project.paths.logs, item.run, asked, on_progress) as follow:
        worker.work(folder, project.paths.data, project.home, every, follow)


def _enter(item: Item, folder: Path) -> None:
    """Write the request of a new run."""
    if not (folder / "request.json").is_file():
        if item.patch:
            files.write_text(folder / "patch.diff", item.patch)
        files.write_json(folder / "request.json", item.described)


def _steps(item: Item, event: dict[str, Any], report_event: pool.Report) -> worker.Progress:
    def on_progress(done: int, _: Any) -> None:
        report_event({**event, "seconds": item.work.seconds * done / max(1, item.work.steps)})

    return on_progress


def _epochs(
    item: Item, event: dict[str, Any], first: int, group: Sequence[evaluate.Item], report_event: pool.Report
) -> pool.Report:
    """Pass the epochs of networks that are trained together on, as seconds of the estimate."""
    each = [scoring.seconds / scoring.seeds for scoring in item.work.scorings for _ in range(scoring.seeds)]
    before, epochs = item.work.seconds + sum(each[:first]), group[0].epochs

    def on_epoch(heard: dict[str, Any]) -> None:
        if heard["seed"] == group[-1].seed and (heard["epoch"] % 10 == 0 or heard["epoch"] == epochs):
            done = before + len(group) * each[first] * heard["epoch"] / epochs
            report_event({**event, "seconds": done})

    return on_epoch


def _heard(project: Project, made: Plan, course: Course, event: dict[str, Any], on_progress: Progress) -> None:
    """Enter what began into the database, and pass on how far it is."""
    run, work = event["run"], made.works[event["number"]]
    folder = project.folder_of(run)
    if event.get("state") == "running" and not (folder / "outcome.json").is_file():
        course.open.add(run)
        with contextlib.suppress(EspError):  # it is known when it was begun before
            store_runs.insert_run(project.store, files.read_json(folder / "request.json"), folder)
        store_runs.set_state(project.store, run, "running")
    elif event.get("state") == "scoring":
        course.open.discard(run)
        store_runs.record_outcome(project.store, folder)
    course.done[run] = event.get("seconds", course.done.get(run, 0.0))
    on_progress(sum(course.done.values()), work.label)


def _record(project: Project, item: Item, result: Result, course: Course) -> None:
    """Enter how a cell ended."""
    folder = project.folder_of(item.run)
    course.open.discard(item.run)
    course.done[item.run] = item.work.whole
    if result.message:
        course.problems[item.number] = _problem(item.work, result.message, result.hint)
    if (folder / "outcome.json").is_file():
        store_runs.record_outcome(project.store, folder)
    elif (folder / "request.json").is_file():
        store_runs.set_state(project.store, item.run, "failed", error=result.message)


def _leave(project: Project, course: Course) -> None:
    """Say of every run that was on its way that it was stopped."""
    for run in course.open:
        folder = project.folder_of(run)
        if (folder / "outcome.json").is_file():
            store_runs.record_outcome(project.store, folder)
        else:
            store_runs.set_state(project.store, run, "interrupted")


def _problem(work: Work, message: str, hint: str) -> Problem:
    return Problem(work.dataset, work.ipc, work.label, message, hint)


def _sentence(work: Work, result: Result) -> str:
    where = f"{work.label} on {work.dataset}, {work.ipc} per class"
    return f"{where}: {result.message}" if result.message else f"{where}: done ({result.run})"
