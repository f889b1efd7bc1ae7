"""Scores that belong together: those of runs that ask the same but for their seed. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espctl.services.project import Project
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord

VARIANTS = {"resnet10idc": "resnet10", "densenetidc": "densenet121"}  # IDC's narrower ones; shown beside, and marked
LABELS = ("preset", "preset_base", "preset_origin", "changed_options")  # how a request was asked for


@dataclass(frozen=True)
class Group:
    """Scores that make one number: every network, seed by seed, of runs that ask the same but for their seed."""

    same: str
    request: Mapping[str, Any]
    pairs: tuple[tuple[RunRecord, EvaluationRecord], ...]

    @property
    def run(self) -> RunRecord:
        """The first run."""
        return self.pairs[0][0]

    @property
    def score(self) -> EvaluationRecord:
        """The first score; all have its protocol and network."""
        return self.pairs[0][1]

    @property
    def base(self) -> str:
        """Name of the network without its options, of which kind it is for the tables."""
        name = self.score.network.partition(",")[0]
        return VARIANTS.get(name, name)

    @property
    def preset(self) -> str:
        """The preset of the runs; all of them when the same options were asked for in several ways."""
        return " + ".join(sorted({run.preset or "-" for run, _ in self.pairs}))

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of all runs."""
        return tuple(sorted({run.id for run, _ in self.pairs}))


def grouped(project: Project, named: Mapping[str, Any], protocol: str | None, all_runs: bool) -> list[Group]:
    """Groups of the finished runs that have certain values, in no certain order.

    Args:
        named: column of runs -> value.
        protocol: only scores by it.
        all_runs: a group for each run, not one for all seeds.
    """
    with project.store.snapshot():
        found = store_runs.list_evaluations(project.store, named, protocol=protocol)
        # Here and not in SQL, which would rather use its index of states, although nearly all runs are finished.
        pairs = [(run, score) for run, score in found if run.state == "finished"]
        same = store_runs.asked(project.store, list({run.id for run, _ in pairs}), ("seed", *LABELS))
        # A repeated run makes the same set and the same networks again: counting both would narrow the spread.
        cells: dict[tuple[str, ...], dict[tuple[str, int], tuple[RunRecord, EvaluationRecord]]] = {}
        for run, score in pairs:
            key = (same[run.id], score.network, score.protocol_hash, run.id if all_runs else "")
            cells.setdefault(key, {})[run.key, score.seed] = run, score
        members = [(key[0], tuple(cell.values())) for key, cell in cells.items()]
        requests = store_runs.requests_of(project.store, [cell[0][0].id for _, cell in members])
    return [Group(text, requests[cell[0][0].id], cell) for text, cell in members]
