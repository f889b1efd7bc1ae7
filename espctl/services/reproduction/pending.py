"""What is missing of a plan: its experts and works as the requests that make them, and how far these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from esp.errors import EspError
from espctl.services import condense, evaluate
from espctl.services import experts as expert_service
from espctl.services.project import Project, find_run
from espctl.services.protocols import find as find_protocol
from espctl.services.reproduction.plan import ExpertWork, Plan, Work, spread
from espctl.settings import Settings
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord


@dataclass(frozen=True)
class Item:
    """A cell's work for any process: the plan's part, its run, and the settings."""

    number: int
    work: Work
    run: str
    described: dict[str, Any]
    patch: str
    settings: Settings


def settings_of(project: Project, made: Plan) -> Project:
    """The project with the settings that a plan is carried out with."""
    asked = made.asked
    seeds = max((s.seeds for work in made.works for s in work.scorings), default=1)
    return project.with_settings(
        {
            "compute.threads": asked.threads,
            "compute.device": asked.device,
            "condense.seed": asked.seed,
            "evaluate.seeds": seeds,
            "experts.jobs": asked.jobs,
        }
    )


def with_experts(project: Project, work: ExpertWork) -> Project:
    """The project with the settings that experts of a plan are trained with."""
    return project.with_settings(
        {
            "experts.network": work.network,
            "experts.count": work.count,
            "experts.epochs": work.epochs,
            "experts.batch": work.batch,
        }
    )


def prepared_experts(project: Project, work: ExpertWork) -> tuple[expert_service.BuildPlan, list[Any]]:
    """The store of experts of a plan, and those that are missing.

    Raises:
        EspError: the data set is not there, or the disk is too small.
    """
    request = expert_service.BuildRequest(work.dataset, space=work.space)
    return expert_service.prepare(with_experts(project, work), request)


def item_of(project: Project, made: Plan, stores: Sequence[str | EspError], number: int) -> Item:
    """A work of a plan with the run that it has, or will have.

    Args:
        stores: for each of the plan's experts the name of their store, or why there is none.

    Raises:
        EspError: it cannot be made; for want of experts, theirs.
    """
    work = made.works[number]
    store = stores[work.experts] if work.experts is not None else ""
    if isinstance(store, EspError):
        raise store
    beside = project.with_settings({"condense.method": work.method, "condense.network": work.network})
    request = condense.Request(
        work.dataset, work.ipc, work.options, experts=store, expert_count=work.expert_count, preset=work.preset,
        space=work.space,
    )  # fmt: skip
    prepared = condense.prepare(beside, request)
    known = condense.existing(beside, prepared)
    run = known.id if known else _free(beside, prepared.run)
    return Item(number, work, run, {**prepared.described, "id": run}, prepared.patch, beside.settings)


def _free(project: Project, run: str) -> str:
    """The name, or the first with a number that no run has."""
    names = (run if number == 1 else f"{run}-{number}" for number in range(1, 10_000))
    return next(name for name in names if not (project.folder_of(name) / "request.json").is_file())


@dataclass(frozen=True)
class States:
    """What there is of a plan: for each of its experts and works `finished`, `missing`, or the state of the run.

    Attributes:
        seconds: of all that is not finished, about.
    """

    experts: tuple[str, ...]
    works: tuple[str, ...]
    seconds: float


def states_of(project: Project, made: Plan) -> States:
    """How far a plan is. No run is made."""
    beside = settings_of(project, made)
    built = [prepared_experts(beside, work) for work in made.experts]
    experts = tuple("missing" if items else "finished" for _, items in built)
    stores = [store.store for store, _ in built]
    works = tuple(_state(beside, made, stores, experts, number) for number in range(len(made.works)))
    left = [one.seconds / one.count for (_, items), one in zip(built, made.experts, strict=True) for _ in items]
    open_works = [work.whole for work, state in zip(made.works, works, strict=True) if state != "finished"]
    jobs = made.asked.jobs
    return States(experts, works, spread(left, jobs) + spread(open_works, jobs))


def _state(project: Project, made: Plan, stores: Sequence[str], experts: Sequence[str], number: int) -> str:
    needed = made.works[number].experts
    if needed is not None and experts[needed] == "missing":
        return "missing"
    try:
        item = item_of(project, made, stores, number)
    except EspError:
        return "impossible"
    if not (project.folder_of(item.run) / "request.json").is_file():
        return "missing"
    state = find_run(project, item.run).state
    return "not scored" if state == "finished" and missing(project, item) else state


def missing(project: Project, item: Item) -> bool:
    """Whether anything of a work is still to be done; scores that were written and not recorded are recorded."""
    folder = project.folder_of(item.run)
    if not (folder / "outcome.json").is_file():
        return True
    record = store_runs.record_outcome(project.store, folder)
    return any(not one.path.exists() for one in networks(project, record, item.work))


def networks(project: Project, record: RunRecord, work: Work) -> list[evaluate.Item]:
    """Every network that scores a run by the plan. A worker calls this too, so no database is opened."""
    found = []
    for scoring in work.scorings:
        chosen = replace(project.settings.evaluate, seeds=scoring.seeds)
        beside = Project(replace(project.settings, evaluate=chosen))
        protocol = find_protocol(beside, scoring.protocol)
        found += evaluate.items_of(beside, record, protocol, scoring.network, 1)
    return found
