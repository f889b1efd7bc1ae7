"""What every score needs beside it: selections of real images of equal size, made once."""

from __future__ import annotations

from pathlib import Path

from esp.data.dataset import OFFICIAL
from espctl.jobs import signals
from espctl.services import condense, experts
from espctl.services.project import Project
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

METHODS = ("random", "herding")


def beside(project: Project, record: RunRecord, space: str) -> list[RunRecord]:
    """The random selection for a run, and the one by herding where there are experts; made when missing.

    There is one of each for a data set, budget, network and pixel space: that of seed 0, whatever the run's seed.

    Args:
        space: pixel space of the run's images.
    """
    wanted = {"random": "", "herding": _store(project, record)}
    chosen = [method for method in METHODS if wanted[method] is not None and _comes_before(method, record.method)]
    return [_selection(project, record, method, wanted[method] or "", space) for method in chosen]


def _comes_before(method: str, other: str) -> bool:
    return other not in METHODS or METHODS.index(method) < METHODS.index(other)


def _store(project: Project, record: RunRecord) -> str | None:
    """Experts of a run's network on its data: the run's own, or the first store; None where there are none."""
    request = store_runs.requests_of(project.store, [record.id])[record.id]
    for entry in request.get("experts") or []:
        if (project.home / entry["path"]).exists():
            return Path(entry["path"]).parent.name
    found = experts.listing(project, record.dataset, record.network)
    return next((expert.path.parent.name for expert in found if expert.split == OFFICIAL), None)


def _selection(project: Project, record: RunRecord, method: str, store: str, space: str) -> RunRecord:
    flags = {"condense.method": method, "condense.seed": 0, "condense.network": record.network}
    chosen = project.with_settings(flags)
    request = condense.Request(record.dataset, record.ipc, {}, experts=store, space=space)
    prepared = condense.prepare(chosen, request)
    known = condense.existing(chosen, prepared)
    if known and known.state == "finished":
        return known
    with signals.stoppable("run the same command again to go on"):  # with the score that was asked for
        return condense.start(chosen, prepared, lambda *_: None, again=False)
