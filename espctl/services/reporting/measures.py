"""HLR, IOR, LRS and ARS of a table's rows, from what was scored and from the experts; see `esp.measures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from esp import measures as definitions
from esp.condensed import LABELS
from esp.data.dataset import OFFICIAL
from esp.statistics import mean_and_sd
from esp.trajectory import open_trajectory
from espctl.report.model import Measures
from espctl.services import experts
from espctl.services.project import Project
from espctl.services.reporting.groups import Group

PLAIN = "dc"  # the protocol without augmentation; cut to the same epochs it differs from `dsa` in nothing else
_Key = tuple[str | None, int, str, str]


@dataclass(frozen=True)
class Beside:
    """What rows are measured against.

    Attributes:
        groups: all scores of the data sets.
        real: (fingerprint, network) -> accuracy of networks trained on all real images, and which these are.
    """

    project: Project
    groups: Sequence[Group]
    real: dict[tuple[str, str], tuple[float, str]]

    @classmethod
    def of(cls, project: Project, groups: Sequence[Group]) -> Beside:
        """Read the experts of a project."""
        return cls(project, groups, _experts(project))

    def measures(self, group: Group) -> Measures:
        """The measures of one row, and what would have to be run for those that are missing."""
        run, score, needed = group.run, group.score, []
        own, random = _mean(group), self._random(group)
        real, origin = self.real.get((run.fingerprint or "", score.network), (None, ""))
        if real is None:
            needed.append(f"espctl experts build --dataset {run.dataset} --network {score.network}")
        if random is None:
            needed.append(f"espctl evaluate {run.id} --protocol {score.protocol} --network {score.network}")
        hard = own if self._hard(group) else None
        hlr = None if real is None or hard is None else definitions.hard_label_recovery(real, hard)
        ior = None if random is None else definitions.improvement_over_random(own, random)
        lrs = None if ior is None or hlr is None else definitions.label_robust_score(ior, hlr)
        ars, missing = self._ars(group, ior)
        return Measures(hlr, ior, lrs, ars, real, origin, (*needed, *missing))

    def _ars(self, group: Group, augmented: float | None) -> tuple[float | None, tuple[str, ...]]:
        """ARS of a row that was scored with augmentation, and the command that scores it without."""
        score = group.score
        if score.protocol.partition("+")[0].partition("@")[0] == PLAIN or score.epochs is None:
            return None, ()
        plain = next((other for other in self.groups if _is_plain(other, group)), None)
        random = None if plain is None else self._random(plain)
        if plain is None or random is None:
            command = f"espctl evaluate {group.run.id} --protocol {PLAIN}@{score.epochs} --network {score.network}"
            return None, (command,)
        gain = definitions.improvement_over_random(_mean(plain), random)
        return (None if augmented is None else definitions.augmentation_robust_score(augmented, gain)), ()

    def _hard(self, group: Group) -> bool:
        """Whether the sets have one class per image; those with learned label rows were scored with these."""
        paths = [self.project.folder_of(run) / "synthetic.safetensors" for run in group.runs]
        return not any(LABELS in _names(path) for path in paths if path.exists())

    def _random(self, group: Group) -> float | None:
        """Accuracy of random selections of the same data set and size, network and protocol."""
        found = [g for g in self.groups if g.run.method == "random" and _setting(g) == _setting(group)]
        scores = [score.accuracy for g in found if g.run.kind == "condense" for _, score in g.pairs]
        return mean_and_sd(scores)[0] if scores else None


def _names(path: Path) -> list[str]:
    """Names of the tensors in a file; a damaged one is taken to hold anything."""
    try:
        with safe_open(path, "numpy") as file:
            return list(file.keys())
    except SafetensorError:
        return [LABELS]


def _setting(group: Group) -> tuple[_Key, str]:
    run, score = group.run, group.score
    return (run.fingerprint, run.ipc, score.network, score.protocol_hash), str(group.request.get("space", ""))


def _is_plain(other: Group, group: Group) -> bool:
    name = other.score.protocol.partition("@")[0]
    return (other.same, other.score.network, other.score.epochs, name) == (
        group.same, group.score.network, group.score.epochs, PLAIN,
    )  # fmt: skip


def _mean(group: Group) -> float:
    return mean_and_sd([score.accuracy for _, score in group.pairs])[0]


def _experts(project: Project) -> dict[tuple[str, str], tuple[float, str]]:
    """For each data set and network, the store of experts with the highest mean accuracy after the last epoch."""
    stores: dict[tuple[str, str, str], list[experts.Expert]] = {}
    for expert in experts.listing(project):
        if expert.split == OFFICIAL:  # others have not seen all real images
            fingerprint = open_trajectory(expert.path).meta["fingerprint"]
            stores.setdefault((fingerprint, expert.network, expert.name.rpartition("/")[0]), []).append(expert)
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for (fingerprint, network, name), members in stores.items():
        mean = mean_and_sd([expert.accuracy for expert in members])[0]
        if mean > found.get((fingerprint, network), (-1.0, ""))[0]:
            origin = f"{100 * mean:.1f}, the last epoch ({members[0].epochs}) of {len(members)} experts, {name}"
            found[fingerprint, network] = mean, origin
    return found
