"""Showing, comparing and labelling runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espctl.services.listing import facts_of
from espctl.services.project import Project, find_run
from espctl.services.scores import Summary, summaries
from espctl.store import labels
from espctl.store import runs as store_runs
from espctl.store.records import Labels, RunDetail

_COST = ("state", "seconds", "peak_memory_bytes", "stored_numbers", "budget_numbers", "device")


@dataclass(frozen=True)
class Shown:
    """A run with everything known about it."""

    detail: RunDetail
    scores: tuple[Summary, ...]
    metrics: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Difference:
    """A fact that two runs do not share: `part` is request, provenance, cost or score."""

    part: str
    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Compared:
    """Two runs and where they differ."""

    a: str
    b: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Labelled:
    """A run and what people put on it."""

    run: str
    name: str | None
    note: str | None
    tags: tuple[str, ...]


def show(project: Project, name: str) -> Shown:
    """A run by its id or name, or the beginning of its id."""
    detail = store_runs.run_detail(project.store, find_run(project, name).id)
    return Shown(detail, tuple(summaries(project, [detail.run])), store_runs.metrics_of(project.store, detail.run.id))


def provenance(shown: Shown) -> dict[str, Any]:
    """Where a run comes from: versions, machine, source."""
    found: dict[str, Any] = dict(shown.detail.request.get("provenance", {}))
    return found


def diff(project: Project, first: str, second: str) -> Compared:
    """Where two runs differ: what was asked, where it was made, what it cost, what it scored.

    Raises:
        RunError: there is no such run, or several.
    """
    a, b = show(project, first), show(project, second)
    found = []
    for part, read in (("request", _asked), ("provenance", provenance), ("cost", _cost), ("score", _scores)):
        mine, yours = read(a), read(b)
        for name in dict.fromkeys([*mine, *yours]):
            if mine.get(name) != yours.get(name):
                found.append(Difference(part, name, mine.get(name), yours.get(name)))
    return Compared(a.detail.run.id, b.detail.run.id, tuple(found))


def tag(project: Project, name: str, add: Sequence[str], remove: Sequence[str]) -> Labelled:
    """Put words on a run and take words off it.

    Raises:
        RunError: there is no such run.
        InputError: a tag that cannot be one.
    """
    run = find_run(project, name).id
    return _labelled(run, labels.change(project.store, run, labels.tagged(add, remove)))


def note(project: Project, name: str, words: str | None) -> Labelled:
    """Write a note on a run; an empty one removes it, None leaves it.

    Raises:
        RunError: there is no such run.
    """
    record = find_run(project, name)
    if words is None:
        detail = store_runs.run_detail(project.store, record.id)
        return Labelled(record.id, record.name, record.note, detail.tags)
    return _labelled(record.id, labels.change(project.store, record.id, labels.noted(words.strip() or None)))


def rename(project: Project, name: str, new: str) -> Labelled:
    """Give a run a name that commands know it by; its id stays. An empty one takes the name away.

    Raises:
        RunError: there is no such run, or another has the name.
        InputError: a name that cannot be one.
    """
    run = find_run(project, name).id
    return _labelled(run, labels.change(project.store, run, labels.named(new or None)))


def _labelled(run: str, found: Labels) -> Labelled:
    return Labelled(run, found.name, found.note, found.tags)


def _asked(shown: Shown) -> dict[str, Any]:
    request: Mapping[str, Any] = shown.detail.request["request"]
    experts = [entry["sha256"][:8] for entry in request.get("experts") or ()]
    return {**facts_of(request), "fingerprint": request.get("fingerprint"), "experts": experts}


def _cost(shown: Shown) -> dict[str, Any]:
    return {name: getattr(shown.detail.run, name) for name in _COST}


def _scores(shown: Shown) -> dict[str, Any]:
    return {f"{s.network}, {s.protocol}": {"mean": s.mean, "sd": s.sd, "n": s.n} for s in shown.scores}
