"""Scoring runs: every network is trained once, written to the run's folder, and entered in the database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from esp import condensed, files
from esp.condensed import Condensed
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.errors import DivergedError, InputError
from esp.evaluation import Evaluator, Protocol, Score, require_rate
from esp.networks.flat import build as build_network
from esp.networks.flat import canonical_spec
from espctl.errors import RunError
from espctl.jobs import locks, pool, signals
from espctl.jobs.compute import Compute, jobs_of, peak_memory, resolve, stack_of
from espctl.services import baselines
from espctl.services.project import Project, find_run, slug
from espctl.services.protocols import find as find_protocol
from espctl.services.scores import Summary, summaries
from espctl.store import runs as store_runs
from espctl.store.records import EvaluationRecord, RunRecord


@dataclass(frozen=True)
class Item:
    """One network to train, in any process.

    Attributes:
        run, folder: whose synthetic set it is trained on.
        dataset, cache: whose test images judge it.
        network, protocol, seed: what is trained, and how.
        compute: where, with as many threads as `jobs` processes leave to each.
        epochs: of the training, those of every learning rate that is tried.
        stack: so many seeds are trained at once.
    """

    run: str
    folder: Path
    dataset: str
    cache: Path
    network: str
    protocol: Protocol
    seed: int
    compute: Compute
    epochs: int
    jobs: int = 1
    stack: int = 1

    @property
    def path(self) -> Path:
        """Where its score goes: a protocol that changed under its name has another file, and is scored again."""
        protocol = f"{slug(self.protocol.name)}-{self.protocol.hash[:6]}"
        return self.folder / "evaluations" / f"{protocol}.{slug(self.network)}.s{self.seed}.json"


@dataclass(frozen=True)
class Ask:
    """What a command says about scoring beyond the settings.

    Attributes:
        epochs: cut the protocol to so many; its name will say so.
        select: `held-out` chooses the score on held-out training images, and the protocol's name will say so; `last`
            insists on the last epoch; empty leaves it to the protocol.
        lrs: learning rates to choose among.
        network: the network that was named; None for the protocol's own, or else that of the settings.
    """

    epochs: int | None = None
    select: str = ""
    lrs: tuple[float, ...] = ()
    network: str | None = None

    def protocol(self, project: Project) -> Protocol:
        """The protocol of the settings with what was asked."""
        found = find_protocol(project, project.settings.evaluate.protocol)
        found = found.with_epochs(self.epochs) if self.epochs else found
        if self.select == "last" and found.select != "last":
            raise InputError(f"the protocol {found.name} chooses on held-out images", "give another protocol")
        selects = "held-out" in (self.select, found.select)
        if self.lrs and not selects:
            raise InputError("learning rates need something to choose them by", "add --select held-out")
        return found.with_selection(self.lrs) if self.select == "held-out" or self.lrs else found

    def network_of(self, project: Project, protocol: Protocol) -> str:
        """Canonical spec of the network to train."""
        return canonical_spec(self.network or protocol.network or project.settings.evaluate.network)


def prepare(
    project: Project, name: str, jobs: int, baseline: bool, ask: Ask | None = None
) -> tuple[list[str], list[Item]]:
    """Check what is asked and list the networks that are still to be trained.

    Args:
        name: a finished run.
        jobs: processes that will share the cores; 0 for the faster of one and as many as there are cores.
        baseline: whether selections of equal size are scored as well, by `baselines`; made where there are none yet.
            Where the protocol trains with a learned rate there is none, for a selection has learned nothing.
        ask: what the command says beyond the settings.

    Returns:
        The ids of the runs that are scored, the asked one first, and the missing items of all of them.
    """
    record, ask = find_run(project, name), ask or Ask()
    if record.state != "finished":
        raise RunError(
            f"the run {record.id} is {record.state}", f"finish it first: espctl condense --resume {record.id}"
        )
    protocol = ask.protocol(project)
    network = ask.network_of(project, protocol)
    records, items = [record], items_of(project, record, protocol, network, jobs)  # checked before one is selected
    if baseline and record.method != "random" and (protocol.lr_of != "learned" or protocol.fallback_lr):
        space = synthetic_of(project.folder_of(record.id)).space
        for selection in baselines.beside(project, record, space):
            records.append(selection)
            items += items_of(project, selection, protocol, network, jobs)
    for item in items:
        if item.path.exists():
            store_runs.record_evaluation(project.store, item.run, files.read_json(item.path))
    return [r.id for r in records], [item for item in items if not item.path.exists()]


def items_of(project: Project, record: RunRecord, protocol: Protocol, spec: str, jobs: int) -> list[Item]:
    """The networks that score a finished run by a protocol; one for each seed of the settings.

    Args:
        jobs: as of `prepare`.

    Raises:
        EspError: the protocol or the network does not fit the set, or the network cannot be stacked as was asked.
    """
    chosen, folder = project.settings.evaluate, project.folder_of(record.id)
    synthetic = synthetic_of(folder)
    data = load_data(record.dataset, project.paths.data, project.paths.raw)
    data = in_space(data, synthetic.space, project.paths.data)
    synthetic.require(data)
    if protocol.lr_of == "learned":
        require_rate(protocol, synthetic.rate)
    network = build_network(spec, data.shape, data.num_classes)
    epochs = protocol.for_images(len(synthetic.labels())).epochs * max(1, len(protocol.lrs))
    flops = 3.0 * network.flops * len(synthetic.labels()) * epochs * chosen.seeds
    recipe = protocol.for_images(len(synthetic.labels()))
    batch = min(recipe.batch, len(synthetic.labels()))
    jobs = jobs or jobs_of(project.settings.compute, chosen.seeds, flops, epochs * -(-len(synthetic.labels()) // batch))
    compute = resolve(project.settings.compute, flops, jobs)
    stack = stack_of(project.settings.compute, network, batch, chosen.seeds, jobs)
    return [
        Item(
            record.id, folder, data.name, project.paths.data, network.spec, protocol, seed, compute, epochs, jobs, stack
        )
        for seed in range(chosen.seeds)
    ]


def synthetic_of(folder: Path) -> Condensed:
    """The synthetic set of a finished run's folder.

    Raises:
        RunError: it is not the file that the run made.
        ArtifactError: it is missing or damaged.
    """
    outcome = files.read_json(folder / "outcome.json")
    expected = outcome["artifacts"][0]["sha256"]
    path = folder / "synthetic.safetensors"
    found = condensed.load(path)
    if files.file_sha256(path) != expected:
        raise RunError(f"{path} is not the file that the run made", "restore it from a copy, or condense again")
    return found


def score(
    project: Project, items: Sequence[Item], jobs: int, on_event: pool.Report, on_wait: locks.OnWait = locks.silent
) -> Iterator[EvaluationRecord]:
    """Train the networks of `items`; each is written, recorded and yielded when it is done.

    What another process is training already is waited for, and taken from it: `on_wait` hears of it.
    Events: {"run", "seed", "epoch"} after every epoch.
    """
    with signals.stoppable(), ExitStack() as stack:
        for folder in sorted({item.folder for item in items}):
            stack.enter_context(locks.hold(folder, shared=True, wait=None, on_wait=on_wait))
        stack.enter_context(locks.claim([item.path for item in items], on_wait))
        for item in [item for item in items if item.path.exists()]:
            yield store_runs.record_evaluation(project.store, item.run, files.read_json(item.path))
        items = [item for item in items if not item.path.exists()]
        jobs = jobs or max((item.jobs for item in items), default=1)
        for group, trained in pool.run_all(train, stacks(items), jobs, on_event):
            for result in trained.results:
                yield store_runs.record_evaluation(project.store, group[0].run, result)
            if trained.error:
                raise trained.error


@dataclass(frozen=True)
class Trained:
    """The scores of networks that were trained together, and what ended the training of another one."""

    results: tuple[dict[str, Any], ...]
    error: DivergedError | None = None


def stacks(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """The networks that are trained together, in order: of one set, protocol and architecture."""
    found: list[tuple[Item, ...]] = []
    for _, group in groupby(items, key=lambda item: (item.folder, item.protocol, item.network, item.stack)):
        members = tuple(group)
        found += [members[i : i + members[0].stack] for i in range(0, len(members), members[0].stack)]
    return found


def train(items: Sequence[Item], report: pool.Report) -> Trained:
    """Train networks that differ in nothing but their seeds in this process, at once, and write their scores.

    In a stack each network's seconds are its share of the whole time, and its peak of memory is that of all.
    Events: {"run", "seed", "epoch"} after every epoch.
    """
    item = items[0]
    device = item.compute.apply()
    synthetic = synthetic_of(item.folder)
    data = in_space(load_data(item.dataset, item.cache), synthetic.space, item.cache)
    synthetic.require(data)
    network = build_network(item.network, data.shape, data.num_classes)
    evaluator = Evaluator(
        network,
        item.protocol,
        data,
        synthetic.images(),
        synthetic.targets(),
        device,
        item.compute.chunk,
        item.compute.compile,
        synthetic.rate,
    )
    begun = time.monotonic()
    seeds = [item.seed for item in items]
    scores = evaluator.scores(seeds, lambda seed, epoch: report({"run": item.run, "seed": seed, "epoch": epoch}))
    cost = {
        "seconds": (time.monotonic() - begun) / len(items),
        "peak_memory_bytes": peak_memory(device),
        "device": item.compute.device,
        "compute": {**item.compute.describe(), "stack": len(items)},
        "created": datetime.now(UTC).isoformat(),
    }
    results, error = [], None
    for one, score in zip(items, scores, strict=True):
        if isinstance(score, DivergedError):
            error = error or score
            continue
        results.append({**_described(one, score), **cost})
        files.write_json(one.path, results[-1])
    return Trained(tuple(results), error)


def _described(item: Item, found: Score) -> dict[str, Any]:
    """A score as its file says it, without what it cost."""
    return {
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
        "lr": found.lr,
        **_choice(found),
        "train_loss": found.train_loss,
    }


def _choice(found: Score) -> dict[str, Any]:
    """What a protocol that selects has chosen, for the file of a score."""
    if found.selected_epoch is None:
        return {}
    return {"selected_epoch": found.selected_epoch, "held_out_accuracy": found.held_out_accuracy}


def scored(project: Project, runs: Sequence[str], ask: Ask | None = None) -> list[Summary]:
    """Summaries of runs under the protocol and network of the settings, and of what a command says beyond them."""
    ask = ask or Ask()
    protocol = ask.protocol(project)
    records = [store_runs.find_run(project.store, run) for run in runs]
    return summaries(project, records, protocol.name, ask.network_of(project, protocol), protocol.hash)
