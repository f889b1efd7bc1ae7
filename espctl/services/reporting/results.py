"""Accuracies of runs as one small file, named by date, device and commit, to be published beside the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esp import files
from esp.errors import InputError
from espctl.errors import RunError
from espctl.report.model import Row
from espctl.services.project import Project, find_run, slug
from espctl.services.reporting import report
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

_SUFFIX = ".json"
_UNSAID = ("best_known", "measures")


@dataclass(frozen=True)
class Written:
    """A file of results, how many numbers it has, and the runs that they come from."""

    path: Path
    rows: int
    runs: tuple[str, ...]


def write(project: Project, names: Sequence[str], typed: str, target: Path) -> Written:
    """Write the results of the runs `names`, or of all that pass the filter `typed`.

    Args:
        target: a file that ends in .json, or a folder; in a folder it is called DATE-DEVICE-COMMIT-DATASET.json.

    Raises:
        RunError: there is no such run, or nothing was scored.
        InputError: the file exists, or runs of several devices or commits would come under one name.
    """
    if names:
        chosen = [find_run(project, name) for name in names]
    else:
        chosen = store_runs.list_runs(project.store, expression=typed)
    wanted = {run.id for run in chosen if run.state == "finished"}
    if not wanted:
        raise RunError("there are no finished runs to write", "espctl runs ls lists the runs")
    rows = [row for row in report.rows(project, report.Query(cost=True)) if wanted.intersection(row.runs)]
    if not rows:
        raise RunError("none of these runs was scored", "espctl evaluate RUN scores one")
    told = {run for row in rows for run in row.runs}
    path = target if target.suffix == _SUFFIX else target / _name(store_runs.list_runs(project.store, {"id": told}))
    if path.exists():
        raise InputError(f"{path} exists already", "give another name, or remove it first")
    files.write_json(path, [_plain(row) for row in rows])
    return Written(path, len(rows), tuple(sorted(told)))


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name not in _UNSAID}


def _name(runs: Sequence[RunRecord]) -> str:
    """Date of the last run, and what all of them share.

    Raises:
        InputError: they do not share a device and a commit.
    """
    made_on = {run.device or "unknown" for run in runs}
    made_by = {(run.git_commit or run.version or "unknown")[:7] for run in runs}
    for what, found, column in (("devices", made_on, "device"), ("commits", made_by, "git_commit")):
        if len(found) > 1:
            raise InputError(
                f"the results are of several {what}: {', '.join(sorted(found))}",
                f"choose one with --filter '{column}~{min(found)}', or name the file",
            )
    sets = {run.dataset for run in runs}
    data = slug(sets.pop()) if len(sets) == 1 else "all"
    last = max(run.finished or run.created for run in runs)
    return f"{last:%Y-%m-%d}-{slug(made_on.pop())}-{made_by.pop()}-{data}{_SUFFIX}"
