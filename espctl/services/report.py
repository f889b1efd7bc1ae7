"""The paper's tables with our numbers beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp.errors import InputError
from esp.files import canonical
from esp.protocols import PROTOCOLS
from esp.registry import check
from esp.statistics import mean_and_sd
from espctl.errors import RunError
from espctl.report import published
from espctl.services.project import Project, dataset_name
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord

PUBLISHED_AS = {"cafe": "cafe+dsa"}  # whose defaults are the variant with augmentation
ORDER = ("random", "herding", "dc", "dsa", "dm", "kip", "cafe", "mtt", "idc", "kfs", "esp")


@dataclass(frozen=True)
class Row:
    """One cell of a table: runs that differ in their seed alone, under one protocol and network; in percent.

    Attributes:
        method, options: what was done; options that are not the paper's are named.
        stored: parametrisation.
        ipc: images per class of the budget.
        network, protocol: how it was scored.
        mean, sd, n: of the accuracy after the last epoch over all networks of all runs.
        best: mean of the best checks, chosen on the test set.
        published, published_sd, difference: the paper's number and ours minus it, or None where it has none.
        comparable: whether network, protocol and options are the published ones, as far as those are known.
        runs: where the number comes from.
    """

    method: str
    options: str
    stored: str
    ipc: int
    network: str
    protocol: str
    mean: float
    sd: float
    n: int
    best: float
    published: float | None
    published_sd: float | None
    difference: float | None
    comparable: bool
    runs: tuple[str, ...]


def table1(
    project: Project, dataset: str, protocol: str | None = None, network: str | None = None, ipc: int | None = None
) -> list[Row]:
    """Table 1 for one data set: every finished and scored run, grouped over seeds.

    Raises:
        UnknownNameError: there is no such data set, protocol or network.
        InputError: nothing has been scored on this data set.
    """
    dataset = dataset_name(dataset)
    if protocol:
        check(PROTOCOLS, "protocol", protocol.partition("@")[0])
    if network:
        from esp.networks.flat import canonical_spec  # imports torch, which the tables do without

        network = canonical_spec(network)
    filters: dict[str, Any] = {"dataset": dataset, "state": "finished", **({"ipc": ipc} if ipc else {})}
    pairs = store_runs.list_evaluations(project.store, filters, protocol=protocol)
    requests = store_runs.requests_of(project.store, list({run.id for run, _ in pairs}))
    # A repeated run makes the same set and the same networks again: counting both would narrow the spread.
    cells: dict[tuple[Any, ...], dict[tuple[str, int], tuple[RunRecord, EvaluationRecord]]] = {}
    for run, score in pairs:
        if network in (None, score.network):
            request = requests[run.id]
            same = {name: value for name, value in request.items() if name != "seed"}
            key = (canonical(same), _options(request), score.network, score.protocol_hash)
            cells.setdefault(key, {})[run.key, score.seed] = run, score
    if not cells:
        raise InputError(
            f"nothing has been scored on {dataset}",
            f"espctl condense --dataset {dataset} --ipc 1, then espctl evaluate RUN",
        )
    return sorted((_row(dataset, key[1], list(found.values())) for key, found in cells.items()), key=_place)


def _place(row: Row) -> tuple[Any, ...]:
    known = ORDER.index(row.method) if row.method in ORDER else len(ORDER)
    return row.ipc, row.network, row.protocol, known, row.method, row.stored, row.options


def _row(dataset: str, options: str, pairs: Sequence[tuple[RunRecord, EvaluationRecord]]) -> Row:
    run, first = pairs[0]
    mean, sd = mean_and_sd([100 * score.accuracy for _, score in pairs])
    best, _ = mean_and_sd([100 * (score.best_accuracy or score.accuracy) for _, score in pairs])
    base = first.network.partition(",")[0]
    known = published.find("1", dataset, run.ipc, PUBLISHED_AS.get(run.method, run.method), base)
    return Row(
        run.method,
        options,
        run.parametrisation or "",
        run.ipc,
        first.network,
        first.protocol,
        mean,
        sd,
        len(pairs),
        best,
        known.mean if known else None,
        known.sd if known else None,
        mean - known.mean if known else None,
        comparable(run, first),
        tuple(sorted({r.id for r, _ in pairs})),
    )


def comparable(run: RunRecord, score: EvaluationRecord) -> bool:
    """Whether a score was made as the published ones: the method's own options, the full network, an uncut protocol."""
    plain = "," not in score.network and run.network == score.network
    return run.preset == "default" and plain and "@" not in score.protocol


def _options(request: Mapping[str, Any]) -> str:
    """The options of a run that are not its method's defaults, as text."""
    return " ".join(f"{name}={value}" for name, value in request["changed_options"].items())


def images(project: Project, name: str, path: Path) -> Path:
    """Draw a run's synthetic images, one row per class, and write a PNG.

    Raises:
        InputError: the file is not named like a PNG.
        RunError: there is no such run, or it has made nothing yet.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is not a PNG file", "give a name that ends in .png")
    from esp import condensed, pictures  # imports torch, which the tables do without
    from esp.data.dataset import to_pixels

    run = store_runs.find_run(project.store, name)
    if run.state != "finished":
        raise RunError(f"the run {run.id} is {run.state}", f"finish it first: espctl condense --resume {run.id}")
    found = condensed.load(project.folder_of(run.id) / "synthetic.safetensors")
    frame = found.parametrisation.frame
    each = len(found.labels()) // frame.classes
    shown = min(each, 20)
    normalised = found.images().reshape(frame.classes, each, *frame.shape)[:, :shown].flatten(0, 1)
    pixels = to_pixels(normalised, found.meta["mean"], found.meta["std"])
    pictures.save_grid(path, pixels, shown, labels=found.meta["classes"])
    return path
