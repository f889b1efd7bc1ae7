"""What `espctl reproduce` will do: the cells of a table, how each is made, and how long it takes.

A plan is kept in the project and read back by the next call that asks the same: what a plan decides from the speed of a
machine must not change halfway, or finished runs would not be found again.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from esp import files
from esp.errors import ArtifactError, InputError, UnknownNameError
from esp.methods import METHODS
from esp.registry import check
from espctl.report import published
from espctl.services.project import Project, dataset_name
from espctl.services.reporting.report import ORDER, PUBLISHED_AS

TABLES = {"table1": "1", "table2": "2", "table3": "3", "table4": "4"}
LEVELS = {
    "paper": "published options, networks and protocols",
    "quick": "the quick presets",
    "cut": "the quick presets, cut further to the budget",
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ABLATED: dict[str, dict[str, str]] = {"esp:proj+dm": {}, "esp:dm": {"beta": "0"}, "esp:proj": {"dm": "0"}}
"""Rows of Table 4, and what makes them of ESP."""


@dataclass(frozen=True)
class Asked:
    """What a user asks for; a plan belongs to one value of this.

    Attributes:
        table: a name of `TABLES`.
        dataset, ipc, methods: which cells; empty for those of the table.
        budget: seconds; 0 for as long as the paper's options take.
        level: a name of `LEVELS`; empty for the best that fits the budget.
        network: to condense and score with, where the table has ConvNet-3; empty for the level's.
        seeds: networks that score a set; 0 for the settings', or fewer where the budget is short.
        seed: of the condensations.
        device, jobs, threads: where and how it is computed; speeds depend on it.
    """

    table: str
    dataset: str = ""
    ipc: int = 0
    methods: tuple[str, ...] = ()
    budget: float = 0.0
    level: str = ""
    network: str = ""
    seeds: int = 0
    seed: int = 0
    device: str = "cpu"
    jobs: int = 1
    threads: int = 1

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that name it; a plan is carried out by any number of processes."""
        named = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("jobs", "threads")}
        return files.sha256(files.canonical(named))[:8]


@dataclass(frozen=True, order=True)
class Cell:
    """A place in a table: method as the table calls it, and the network that scores, without options."""

    dataset: str
    ipc: int
    method: str
    network: str


@dataclass(frozen=True)
class Scoring:
    """Networks that are trained on a set: spec, protocol by name, how many, and seconds of all of them."""

    base: str
    network: str
    protocol: str
    seeds: int
    seconds: float


@dataclass(frozen=True)
class Work:
    """One condensation and its scores.

    Attributes:
        label: the method as the table calls it.
        preset, options: what it is run with, as `espctl condense` takes it.
        steps: synthetic updates.
        space: pixel space.
        experts: index into `Plan.experts`; None for methods without.
        expert_count: how many of them.
        seconds: of the condensation.
        note: what was cut, in words; empty for a preset as it is.
    """

    dataset: str
    ipc: int
    label: str
    method: str
    preset: str
    options: Mapping[str, str]
    steps: int
    network: str
    space: str
    experts: int | None
    expert_count: int
    seconds: float
    scorings: tuple[Scoring, ...]
    note: str = ""

    @property
    def whole(self) -> float:
        """Seconds of all of it."""
        return self.seconds + sum(scoring.seconds for scoring in self.scorings)


@dataclass(frozen=True)
class ExpertWork:
    """Experts of one network on one data set in one pixel space, and seconds to train them."""

    dataset: str
    network: str
    space: str
    count: int
    epochs: int
    batch: int
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A cell that cannot be made: its sentence and remedy."""

    dataset: str
    ipc: int
    label: str
    message: str
    hint: str


@dataclass(frozen=True)
class Plan:
    """Everything that will be done, in order."""

    asked: Asked
    level: str
    experts: tuple[ExpertWork, ...]
    works: tuple[Work, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def seconds(self) -> float:
        """Of everything, on so many processes at once."""
        single = [work.seconds / work.count for work in self.experts for _ in range(work.count)]
        return spread(single, self.asked.jobs) + spread([work.whole for work in self.works], self.asked.jobs)


def spread(seconds: Sequence[float], jobs: int) -> float:
    """Seconds that pieces of work take, the longest first, when each process takes the next as it gets free."""
    busy = [0.0] * max(1, jobs)
    for piece in sorted(seconds, reverse=True):
        first = busy.index(min(busy))
        busy[first] += piece
    return max(busy)


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `20m`, `1h30m`, `2d`.

    Raises:
        InputError: another form, or no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not 0 < total < 1e9:
        raise InputError(f"{text!r} is no length of time", "write for example 90s, 20m or 1h30m")
    return total


def cells(asked: Asked) -> list[Cell]:
    """The cells of a table that were asked for, rows of a table together.

    A data set that the paper has not gets the methods and networks of the table, and the random selection to be
    compared with.

    Raises:
        UnknownNameError: there is no such table, data set or method.
        InputError: the table has nothing of the kind.
    """
    check(TABLES, "table", asked.table)
    dataset = dataset_name(asked.dataset) if asked.dataset else ""
    rows = [p for p in published.everything() if p.table == TABLES[asked.table] and p.method != "full"]
    labels = list(dict.fromkeys(_ours(p.method) for p in rows))
    for method in asked.methods:
        if method not in labels and method.partition(":")[0] not in (*METHODS, *labels):
            raise UnknownNameError("method", method, labels)
    chosen = [p for p in rows if dataset in ("", p.dataset)]
    if chosen:
        found = {Cell(p.dataset, p.ipc, _ours(p.method), p.network) for p in chosen if asked.ipc in (0, p.ipc)}
    else:
        places = {(_ours(p.method), p.network) for p in rows}
        wanted = {(method, network) for method, network in places if _wanted(method, asked.methods)}
        wanted |= {("random", network) for _, network in wanted}
        found = {Cell(dataset, asked.ipc or 1, method, network) for method, network in wanted}
    found = {cell for cell in found if _wanted(cell.method, asked.methods) or (not chosen and cell.method == "random")}
    if not found:
        raise InputError(
            f"{asked.table} has no such cell",
            f"its data sets: {', '.join(sorted({p.dataset for p in rows}))}; methods: {', '.join(labels)}",
        )
    return sorted(found, key=_place)


def published_of(asked: Asked, cell: Cell) -> published.Published | None:
    """The published number of a cell, if there is one."""
    method = PUBLISHED_AS.get(cell.method, cell.method)
    return published.find(TABLES[asked.table], cell.dataset, cell.ipc, method, cell.network)


def _ours(method: str) -> str:
    return next((own for own, there in PUBLISHED_AS.items() if there == method), method)


def _wanted(label: str, methods: Sequence[str]) -> bool:
    return not methods or label in methods or label.partition(":")[0] in methods


def _place(cell: Cell) -> tuple[Any, ...]:
    name = cell.method.partition(":")[0]
    return cell.dataset, cell.ipc, ORDER.index(name) if name in ORDER else len(ORDER), cell.method, cell.network


def location(project: Project, asked: Asked) -> Path:
    """Where the plan of a request is kept."""
    return project.home / "plans" / f"{asked.table}-{asked.key}.json"


def keep(project: Project, plan: Plan) -> Path:
    """Write a plan into the project."""
    path = location(project, plan.asked)
    files.write_json(path, dataclasses.asdict(plan))
    return path


def kept(project: Project, asked: Asked) -> Plan | None:
    """The plan that an earlier call made of the same request.

    Raises:
        ArtifactError: the file is damaged, or of another version.
    """
    path = location(project, asked)
    if not path.is_file():
        return None
    try:
        found: Plan = TypeAdapter(Plan).validate_python(files.read_json(path))
    except ValidationError as error:
        raise ArtifactError(f"{path} is no plan of this program", "make another with --replan") from error
    return dataclasses.replace(found, asked=asked)


def plain(found: Plan) -> dict[str, Any]:
    """The plan with its estimate, for a machine to read."""
    return {**dataclasses.asdict(found), "seconds": found.seconds}


def differences(found: Plan) -> list[str]:
    """What the plan has other than the paper, a sentence each."""
    said = {
        "paper": [],
        "quick": ["Options are the quick presets: the steps are ours."],
        "cut": ["Options are the quick presets, with steps and what else is named cut further to the budget."],
    }[found.level]
    said = list(said)
    for work in found.experts:
        said.append(
            f"Experts on {work.dataset}: {work.count} of {work.network}, {work.epochs} epochs of batch {work.batch}."
        )
    matched = sorted({work.network for work in found.works})
    scored = sorted({(s.network, s.protocol, s.seeds) for work in found.works for s in work.scorings})
    said.append(f"Condensed with {', '.join(matched)}.")
    said += [f"Scored with {network} by {protocol}, {seeds} networks." for network, protocol, seeds in scored]
    return said


def rounded(value: float) -> int:
    """A number of steps or epochs with two significant digits, not more than `value`."""
    whole = max(1, int(value))
    digit: int = 10 ** max(0, int(math.log10(whole)) - 1)
    return whole // digit * digit
