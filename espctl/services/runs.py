"""Listing and showing runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esp.errors import InputError
from espctl.services.project import Project
from espctl.services.scores import Summary, summaries
from espctl.store import runs as store_runs
from espctl.store.records import RunDetail, RunRecord

_COMPARISON = re.compile(r"(?P<column>[a-z_]+)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*)")


@dataclass(frozen=True)
class Shown:
    """A run with everything known about it."""

    detail: RunDetail
    scores: tuple[Summary, ...]
    metrics: dict[str, list[tuple[int, float]]]


def comparisons(filters: Sequence[str]) -> list[tuple[str, str, object]]:
    """`column=value`, `ipc>=10` and the like, split.

    Raises:
        InputError: a filter of another form.
    """
    found: list[tuple[str, str, object]] = []
    for text in filters:
        match = _COMPARISON.fullmatch(text.strip())
        if match is None:
            raise InputError(f"{text!r} is no filter", "write COLUMN=VALUE, or one of != < <= > >=")
        found.append((match["column"], match["sign"], match["value"]))
    return found


def listing(project: Project, filters: Sequence[str], sort: str, limit: int | None) -> list[RunRecord]:
    """Runs that pass every filter, sorted by a column (`-column` for the largest first)."""
    return store_runs.list_runs(project.store, where=comparisons(filters), sort=sort, limit=limit)


def scores(project: Project, runs: Sequence[RunRecord]) -> dict[str, list[Summary]]:
    """Scores of each run, by run."""
    found: dict[str, list[Summary]] = {}
    for summary in summaries(project, runs):
        found.setdefault(summary.run, []).append(summary)
    return found


def show(project: Project, name: str) -> Shown:
    """A run by its id, or the beginning of it."""
    detail = store_runs.run_detail(project.store, name)
    return Shown(detail, tuple(summaries(project, [detail.run])), store_runs.metrics_of(project.store, detail.run.id))


def provenance(shown: Shown) -> dict[str, Any]:
    """Where a run comes from: versions, machine, source."""
    found: dict[str, Any] = dict(shown.detail.request.get("provenance", {}))
    return found
