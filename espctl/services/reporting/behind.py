"""What stands behind a row of a table: the files of its scores, and what they cost. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esp import files
from espctl.report.model import Cost
from espctl.services.project import Project
from espctl.services.reporting.groups import Group
from espctl.store import runs as store_runs


def files_of(project: Project, group: Group) -> dict[tuple[str, int], str]:
    """(run, seed) -> file of the evaluation, from the project's home."""
    found = {}
    for run in group.runs:
        folder = project.folder_of(run)
        for path in sorted(folder.glob("evaluations/*.json")):
            body = files.read_json(path)
            if (body.get("protocol_hash"), body.get("network")) == (group.score.protocol_hash, group.score.network):
                found[run, body["seed"]] = f"{group.run.folder.rpartition('/')[0]}/{run}/evaluations/{path.name}"
    return found


def cost_of(project: Project, group: Group) -> Cost:
    """What the runs of a row and their scores cost."""
    found = {run.id: run for run, _ in group.pairs}.values()
    requests = store_runs.requests_of(project.store, list(group.runs))
    experts = [_expert_seconds(project, request) for request in requests.values()]
    peaks = [run.peak_memory_bytes for run in found if run.peak_memory_bytes is not None]
    return Cost(
        _mean([run.seconds for run in found]),
        _mean(experts),
        _mean([score.seconds for _, score in group.pairs]),
        max(peaks, default=None),
        ", ".join(sorted({run.device or "?" for run in found})),
    )


def _expert_seconds(project: Project, request: Mapping[str, Any]) -> float | None:
    """Seconds that the experts of a run took together, from the files beside them."""
    total = 0.0
    for entry in request.get("experts") or []:
        beside = (project.home / entry["path"]).with_suffix(".json")
        seconds = files.read_json(beside).get("seconds") if beside.exists() else None
        if seconds is None:
            return None
        total += seconds
    return total


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
