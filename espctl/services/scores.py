"""Scores of runs, summed up over their networks. No torch in here: listings stay quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esp.statistics import mean_and_sd
from espctl.services.project import Project
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord


@dataclass(frozen=True)
class Summary:
    """Scores of one run under one protocol and network, as fractions of the test set.

    Attributes:
        mean, sd, n: of the accuracy after the last epoch, over networks: the score.
        best_mean, best_sd: of the best check of each network, chosen on the test set.
    """

    run: str
    method: str
    protocol: str
    network: str
    mean: float
    sd: float
    n: int
    best_mean: float
    best_sd: float


def summaries(
    project: Project,
    runs: Sequence[RunRecord],
    protocol: str | None = None,
    network: str | None = None,
    digest: str | None = None,
) -> list[Summary]:
    """Mean and deviation over networks, for each run, protocol and network; `digest` is the hash of a protocol.

    A protocol that changed under its name is another protocol.
    """
    found = store_runs.evaluations_of(project.store, [run.id for run in runs])
    made = []
    for run in runs:
        grouped: dict[tuple[str, str, str], list[EvaluationRecord]] = {}
        for record in found.get(run.id, ()):
            same = protocol in (None, record.protocol) and digest in (None, record.protocol_hash)
            if same and network in (None, record.network):
                key = (record.protocol, record.protocol_hash, record.network)
                grouped.setdefault(key, []).append(record)
        made += [_summary(run, records) for records in grouped.values()]
    return made


def _summary(run: RunRecord, records: Sequence[EvaluationRecord]) -> Summary:
    first = records[0]
    mean, sd = mean_and_sd([record.accuracy for record in records])
    best, best_sd = mean_and_sd([record.best_accuracy or record.accuracy for record in records])
    return Summary(run.id, run.method, first.protocol, first.network, mean, sd, len(records), best, best_sd)
