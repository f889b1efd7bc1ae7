"""The table of a plan that was carried out: ours beside the published numbers, with a verdict for each cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esp import presets
from esp.statistics import mean_and_sd
from espctl.services.project import Project
from espctl.services.protocols import find as find_protocol
from espctl.services.reporting import report
from espctl.services.reproduction import plan
from espctl.services.reproduction.plan import Cell, Plan, Problem, Scoring, Work
from espctl.services.reproduction.reproduce import Course
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord


@dataclass(frozen=True)
class Row:
    """A cell of the reproduced table; accuracies in percent.

    Attributes:
        options: what differs from the paper's options.
        mean, sd, n: ours; None and 0 where it was not run.
        published, published_sd, difference: None where the paper has no such cell.
        comparable: whether ours was made as the published number was.
        verdict: `within 1 sd`, `within 2 sd`, `off`, or against random selection `better than random`, `not better
            than random`; `not run`; `failed`.
        seconds: of condensing, as recorded.
        message, hint: why a cell failed.
    """

    dataset: str
    ipc: int
    method: str
    options: str
    stored: str
    network: str
    protocol: str
    mean: float | None
    sd: float | None
    n: int
    published: float | None
    published_sd: float | None
    difference: float | None
    comparable: bool
    verdict: str
    seconds: float | None
    run: str
    message: str = ""
    hint: str = ""


@dataclass(frozen=True)
class _Made:
    """What a project has of the runs of a plan."""

    records: Mapping[str, RunRecord]
    requests: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Sequence[EvaluationRecord]]

    @classmethod
    def read(cls, project: Project, runs: Sequence[str]) -> _Made:
        there = [run for run in runs if (project.folder_of(run) / "request.json").is_file()]
        store = project.store
        records = {run: store_runs.find_run(store, run) for run in there}
        return cls(records, store_runs.requests_of(store, there), store_runs.evaluations_of(store, there))

    def own(self, project: Project, run: str, scoring: Scoring) -> list[EvaluationRecord]:
        """The scores of a run that the plan asks for."""
        wanted = find_protocol(project, scoring.protocol).hash, scoring.network
        found = [score for score in self.scores.get(run, ()) if (score.protocol_hash, score.network) == wanted]
        return [score for score in found if score.seed < scoring.seeds]


def rows(project: Project, made: Plan, course: Course) -> list[Row]:
    """The table: a row for every cell of the plan, in its order."""
    works: dict[Cell, tuple[Work, Scoring, str]] = {}
    for number, work in enumerate(made.works):
        for scoring in work.scorings:
            cell = Cell(work.dataset, work.ipc, work.label, scoring.base)
            works[cell] = work, scoring, course.runs.get(number, "")
    failed = {(p.dataset, p.ipc, p.label): p for p in (*made.problems, *course.problems.values())}
    there = _Made.read(project, [run for *_, run in works.values() if run])
    found = []
    for cell in plan.cells(made.asked):
        row = _empty(made, cell, failed.get((cell.dataset, cell.ipc, cell.method)))
        found.append(_filled(project, made, row, cell, *works[cell], there) if cell in works else row)
    return _judged(found)


def _empty(made: Plan, cell: Cell, problem: Problem | None) -> Row:
    known = plan.published_of(made.asked, cell)
    return Row(
        cell.dataset, cell.ipc, cell.method, "", "", cell.network, "", None, None, 0,
        known.mean if known else None, known.sd if known else None, None, True,
        "failed" if problem else "not run", None, "",
        problem.message if problem else "", problem.hint if problem else "",
    )  # fmt: skip


def _filled(
    project: Project, made: Plan, row: Row, cell: Cell, work: Work, scoring: Scoring, run: str, there: _Made
) -> Row:
    """A row with our number, if all networks that the plan asks for are there."""
    options = " ".join(word for word in ("" if work.preset == "paper" else work.preset, work.note) if word)
    row = replace(row, options=options, network=scoring.network, protocol=scoring.protocol, run=run)
    own = there.own(project, run, scoring)
    if len(own) < scoring.seeds:
        return row
    mean, sd = mean_and_sd([100 * score.accuracy for score in own])
    known, record = plan.published_of(made.asked, cell), there.records[run]
    ablated = cell.method in plan.ABLATED and work.preset == "paper" and not work.note
    return replace(
        row,
        options=presets.describe(there.requests[run]) or ("" if record.preset in report.PAPER else record.preset or ""),
        stored=record.parametrisation or "",
        mean=mean,
        sd=sd,
        n=len(own),
        difference=mean - known.mean if known else None,
        comparable=not report.reasons(record, own[0], known, ablated),
        verdict="",
        seconds=record.seconds,
    )


def _judged(found: Sequence[Row]) -> list[Row]:
    def place(row: Row) -> tuple[str, int, str, str]:
        return row.dataset, row.ipc, row.network, row.protocol

    chance = {place(row): row for row in found if row.method == "random"}
    return [row if row.verdict else replace(row, verdict=verdict(row, chance.get(place(row)))) for row in found]


def verdict(row: Row, chance: Row | None) -> str:
    """A row against the published number, or where there is none against random selection scored likewise.

    The standard deviation is that of the difference: the root of the sum of both squares.
    """
    assert row.mean is not None
    if row.published is not None:
        spread = math.hypot(row.sd or 0.0, row.published_sd or 0.0)
        off = abs(row.mean - row.published)
        return "within 1 sd" if off <= spread else "within 2 sd" if off <= 2 * spread else "off"
    if row.method == "random":
        return "-"
    if chance is None or chance.mean is None:
        return "no random to compare with"
    spread = math.hypot(row.sd or 0.0, chance.sd or 0.0)
    return "better than random" if row.mean - chance.mean > spread else "not better than random"
