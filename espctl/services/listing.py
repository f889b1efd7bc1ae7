"""Lists of runs: chosen by a filter, with their scores, what differs between them, and groups over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esp.errors import UnknownNameError
from esp.files import canonical
from esp.statistics import mean_and_sd
from espctl.services.project import Project
from espctl.services.reporting.groups import LABELS
from espctl.services.scores import Summary, summaries
from espctl.store import runs as store_runs
from espctl.store import selection
from espctl.store.records import EvaluationRecord, RunRecord

OPTION = selection.OPTION
COLUMNS = (*selection.COLUMNS, "tags", "accuracy")
"""What a column may be, beside `options.NAME`."""
_UNSAID = ("experts", "changed_options", "method_options", "parametrisation_options", "fingerprint")


@dataclass(frozen=True)
class Listed:
    """A run, its tags, its scores, and what was asked as `facts`: dotted name -> value."""

    run: RunRecord
    tags: tuple[str, ...]
    scores: tuple[Summary, ...]
    facts: Mapping[str, Any]

    def value(self, column: str) -> Any:
        """What stands in a column; the score is that of every protocol and network it has."""
        if column == "tags":
            return self.tags
        if column == "accuracy":
            return self.scores
        return getattr(self.run, column) if column in selection.COLUMNS else self.facts.get(column)

    def plain(self) -> dict[str, Any]:
        """The run's columns, tags, options and scores in one level."""
        options = {name.removeprefix(OPTION): value for name, value in self.facts.items() if name.startswith(OPTION)}
        return {**asdict(self.run), "tags": self.tags, "options": options, "scores": self.scores}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but what they are grouped over, under one protocol and network.

    Attributes:
        facts: what all of them have in common, of what differs between groups; dotted name -> value.
        mean, sd, n: of the accuracy over all networks of all runs, as fractions; None and 0 when nothing was scored.
        runs: their ids.
    """

    method: str
    dataset: str
    ipc: int
    parametrisation: str | None
    network: str | None
    facts: Mapping[str, Any]
    protocol: str | None
    evaluated: str | None
    mean: float | None
    sd: float | None
    n: int
    runs: tuple[str, ...]


def listing(project: Project, typed: str, sort: str = "-created", limit: int | None = None) -> list[Listed]:
    """Runs that pass a filter, sorted by a column (`-column` for the largest first), with all that is shown of them.

    Raises:
        ExpressionError: the filter cannot be understood, or names what no run has.
        UnknownNameError: there is no such column to sort by.
    """
    with project.store.snapshot():
        found = store_runs.list_runs(project.store, expression=typed, sort=sort, limit=limit)
        ids = [run.id for run in found]
        tags, requests = store_runs.tags_of(project.store, ids), store_runs.requests_of(project.store, ids)
        scores: dict[str, list[Summary]] = {}
        for summary in summaries(project, found):
            scores.setdefault(summary.run, []).append(summary)
    if not found:
        _require_options(project, selection.option_names(typed))
    return [
        Listed(run, tags.get(run.id, ()), tuple(scores.get(run.id, ())), facts_of(requests[run.id])) for run in found
    ]


def count(project: Project, typed: str) -> int:
    """How many runs pass a filter."""
    return store_runs.count_runs(project.store, typed)


def facts_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request asks, in one level: its options as `options.NAME`; experts and the like are left out."""
    facts = {name: value for name, value in request.items() if name not in _UNSAID}
    for part in ("parametrisation_options", "method_options"):
        facts |= {f"{OPTION}{name}": value for name, value in (request.get(part) or {}).items()}
    return facts


def changed(found: Sequence[Listed]) -> list[str]:
    """Names of the facts that are not the same in all runs that have them, in the order of the requests.

    An option that another method lacks says nothing that the method's name does not.
    """
    names = dict.fromkeys(name for one in found for name in one.facts)
    return [name for name in names if len({canonical(one.facts[name]) for one in found if name in one.facts}) > 1]


def check_columns(project: Project, names: Sequence[str]) -> list[str]:
    """The columns that a user asked for.

    Raises:
        UnknownNameError: there is no such column, or no run has such an option.
    """
    for name in names:
        if not name.startswith(OPTION) and name not in COLUMNS:
            raise UnknownNameError("column", name, (*COLUMNS, "options.NAME"))
    _require_options(project, [name.removeprefix(OPTION) for name in names if name.startswith(OPTION)])
    return list(names)


def groups(project: Project, found: Sequence[Listed], over: Sequence[str]) -> list[Group]:
    """Groups of runs that ask the same but for `over` (`seed`, another fact, or an option's name); newest first.

    Raises:
        UnknownNameError: no run says anything of that name.
    """
    known = {name for one in found for name in one.facts}
    left = {name if name in known else f"{OPTION}{name}" for name in over}
    if found and (unknown := left - known):
        raise UnknownNameError("part of a request", min(unknown).removeprefix(OPTION), known)
    told = [name for name in changed(found) if name not in left]
    requests = store_runs.requests_of(project.store, [one.run.id for one in found])
    together: dict[str, list[Listed]] = {}
    for one in (one for one in found if one.run.id in requests):  # the others were removed meanwhile
        together.setdefault(_same(requests[one.run.id], left), []).append(one)
    scores = store_runs.evaluations_of(project.store, [one.run.id for one in found])
    return [group for members in together.values() for group in _grouped(members, scores, told)]


def _same(request: Mapping[str, Any], left: Iterable[str]) -> str:
    """The request without what is grouped over, as text."""
    kept = {name: value for name, value in request.items() if name not in (*LABELS, *left)}
    for part in ("method_options", "parametrisation_options"):
        options = request.get(part) or {}
        kept[part] = {name: value for name, value in options.items() if f"{OPTION}{name}" not in left}
    return canonical(kept)


def _grouped(
    members: Sequence[Listed], scores: Mapping[str, Sequence[EvaluationRecord]], told: Sequence[str]
) -> list[Group]:
    """One group for each way that members were scored in, and one without a number for those that never were."""
    # A repeated run makes the same set and the same networks again: counting both would narrow the spread.
    ways: dict[tuple[str, str, str], dict[tuple[str, int], tuple[str, float]]] = {}
    for one in reversed(members):
        for score in scores.get(one.run.id, ()):
            way = ways.setdefault((score.protocol, score.protocol_hash, score.network), {})
            way[one.run.key, score.seed] = one.run.id, score.accuracy
    first = members[0].run
    facts = {name: members[0].facts.get(name) for name in told}
    about = (first.method, first.dataset, first.ipc, first.parametrisation, first.network, facts)
    unscored = tuple(one.run.id for one in members if not scores.get(one.run.id))
    made = [Group(*about, None, None, None, None, 0, unscored)] if unscored else []
    for (protocol, _, network), values in ways.items():
        mean, sd = mean_and_sd([accuracy for _, accuracy in values.values()])
        runs = tuple(sorted({run for run, _ in values.values()}))
        made.append(Group(*about, protocol, network, mean, sd, len(values), runs))
    return made


def _require_options(project: Project, names: Sequence[str]) -> None:
    if names:
        known = store_runs.option_names(project.store)
        for name in names:
            if name not in known:
                raise UnknownNameError("option", name, known)
