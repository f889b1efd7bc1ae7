"""Scoring runs: every network is trained once, written to the run's folder, and entered in the database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import condensed, files
from esp.condensed import Condensed
from esp.data.store import load as load_data
from esp.evaluation import Evaluator, Protocol
from esp.evaluation import protocol as find_protocol
from esp.networks.flat import build as build_network
from esp.networks.flat import canonical_spec
from espctl.errors import RunError
from espctl.jobs import pool
from espctl.jobs.compute import Compute, resolve
from espctl.services import condense
from espctl.services.project import Project, find_run, slug
from espctl.services.scores import Summary, summaries
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord


@dataclass(frozen=True)
class Item:
    """One network to train, in any process."""

    run: str
    folder: Path
    dataset: str
    cache: Path
    network: str
    protocol: Protocol
    seed: int
    compute: Compute
    epochs: int

    @property
    def path(self) -> Path:
        """Where its score goes: a protocol that changed under its name has another file, and is scored again."""
        protocol = f"{slug(self.protocol.name)}-{self.protocol.hash[:6]}"
        return self.folder / "evaluations" / f"{protocol}.{slug(self.network)}.s{self.seed}.json"


def prepare(project: Project, name: str, epochs: int | None, jobs: int, baseline: bool) -> tuple[list[str], list[Item]]:
    """Check what is asked and list the networks that are still to be trained.

    Args:
        name: a finished run.
        epochs: cut the protocol to so many; its name will say so.
        jobs: processes that will share the cores.
        baseline: whether the equal-size random selection is scored as well; it is selected when there is none yet.

    Returns:
        The ids of the runs that are scored, the asked one first, and the missing items of all of them.
    """
    chosen = project.settings.evaluate
    record = find_run(project, name)
    if record.state != "finished":
        raise RunError(
            f"the run {record.id} is {record.state}", f"finish it first: espctl condense --resume {record.id}"
        )
    protocol = find_protocol(chosen.protocol)
    protocol = protocol.with_epochs(epochs) if epochs else protocol
    records, items = [record], _items(project, record, protocol, jobs)  # checked before a baseline is selected
    if baseline and record.method != "random":
        records.append(_random(project, record))
        items += _items(project, records[1], protocol, jobs)
    for item in items:
        if item.path.exists():
            store_runs.record_evaluation(project.store, item.run, files.read_json(item.path))
    return [r.id for r in records], [item for item in items if not item.path.exists()]


def _items(project: Project, record: RunRecord, protocol: Protocol, jobs: int) -> list[Item]:
    chosen, folder = project.settings.evaluate, project.folder_of(record.id)
    synthetic = _synthetic(folder)
    data = load_data(record.dataset, project.paths.data, project.paths.raw)
    synthetic.require(data)
    network = build_network(chosen.network, data.shape, data.num_classes)
    epochs = protocol.for_images(len(synthetic.labels())).epochs
    flops = 3.0 * network.flops * len(synthetic.labels()) * epochs * chosen.seeds
    compute = resolve(project.settings.compute, flops, jobs)
    return [
        Item(record.id, folder, data.name, project.paths.data, network.spec, protocol, seed, compute, epochs)
        for seed in range(chosen.seeds)
    ]


def _synthetic(folder: Path) -> Condensed:
    outcome = files.read_json(folder / "outcome.json")
    expected = outcome["artifacts"][0]["sha256"]
    path = folder / "synthetic.safetensors"
    found = condensed.load(path)
    if files.file_sha256(path) != expected:
        raise RunError(f"{path} is not the file that the run made", "restore it from a copy, or condense again")
    return found


def _random(project: Project, record: RunRecord) -> RunRecord:
    """The random selection of equal size for the same data set and seed, made when it is missing."""
    flags = {"condense.method": "random", "condense.seed": record.seed, "condense.network": record.network}
    beside = project.with_settings(flags)
    prepared = condense.prepare(beside, condense.Request(record.dataset, record.ipc, {}))
    known = condense.existing(beside, prepared)
    if known and known.state == "finished":
        return known
    return condense.start(beside, prepared, lambda *_: None)


def score(project: Project, items: Sequence[Item], jobs: int, on_event: pool.Report) -> Iterator[EvaluationRecord]:
    """Train the networks of `items`; each is written, recorded and yielded when it is done.

    Events: {"run", "seed", "epoch"} after every epoch.
    """
    with pool.stoppable():
        for item, result in pool.run_all(train, items, jobs, on_event):
            yield store_runs.record_evaluation(project.store, item.run, result)


def train(item: Item, report: pool.Report) -> dict[str, Any]:
    """Train one network in this process and write its score."""
    device = item.compute.apply()
    data = load_data(item.dataset, item.cache)
    synthetic = _synthetic(item.folder)
    network = build_network(item.network, data.shape, data.num_classes)
    evaluator = Evaluator(
        network,
        item.protocol,
        data,
        synthetic.images(),
        synthetic.labels(),
        device,
        item.compute.chunk,
        item.compute.compile,
    )
    begun = time.monotonic()
    found = evaluator.score(item.seed, lambda epoch: report({"run": item.run, "seed": item.seed, "epoch": epoch}))
    result = {
        "protocol": item.protocol.name,
        "protocol_hash": item.protocol.hash,
        "recipe": asdict(item.protocol),
        "network": item.network,
        "seed": item.seed,
        "accuracy": found.accuracy,
        "best_accuracy": found.best_accuracy,
        "best_epoch": found.best_epoch,
        "curve": [list(point) for point in found.curve],
        "epochs": found.epochs,
        "train_loss": found.train_loss,
        "seconds": time.monotonic() - begun,
        "device": item.compute.device,
        "compute": item.compute.describe(),
        "created": datetime.now(UTC).isoformat(),
    }
    files.write_json(item.path, result)
    return result


def scored(project: Project, runs: Sequence[str], epochs: int | None) -> list[Summary]:
    """Summaries of runs under the protocol and network of the settings."""
    chosen = project.settings.evaluate
    protocol = find_protocol(chosen.protocol)
    name = protocol.with_epochs(epochs).name if epochs else protocol.name
    records = [store_runs.find_run(project.store, run) for run in runs]
    return summaries(project, records, name, canonical_spec(chosen.network))
