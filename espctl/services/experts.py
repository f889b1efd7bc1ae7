"""Building, finding and judging experts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import artifact, files
from esp import experts as library
from esp.data.dataset import OFFICIAL, Dataset
from esp.data.store import load as load_data
from esp.data.zca import in_space
from esp.errors import ArtifactError, EspError, InputError, UnknownNameError, closest_hint
from esp.networks.flat import Network, canonical_spec
from esp.networks.flat import build as build_network
from esp.spaces import NORMALISED
from esp.training import Recipe
from esp.trajectory import Trajectory, complaints, open_expert, open_trajectory
from espctl.errors import RunError
from espctl.jobs import locks, pool, signals
from espctl.jobs.compute import Compute, resolve, stack_of
from espctl.services import expert_work
from espctl.services.expert_work import Item
from espctl.services.project import Project, dataset_name, slug
from espctl.store.experts import delete_experts, record_expert
from espctl.store.records import ExpertRecord


@dataclass(frozen=True)
class Expert:
    """One expert as it lies on disk. `accuracy` is after the last epoch, on the whole test set.

    Where `split` says that a part of the training set was held out, it is on that part.
    """

    name: str
    dataset: str
    network: str
    number: int
    epochs: int
    parameters: int
    dtype: str
    accuracy: float
    loss: float | None
    bytes: int
    healthy: bool
    complaints: tuple[str, ...]
    path: Path
    split: str = OFFICIAL
    space: str = NORMALISED


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do: which experts are there, which are missing, and what they need.

    `stack` of the missing ones are trained as one program.
    """

    store: str
    folder: Path
    finished: tuple[int, ...]
    missing: tuple[int, ...]
    bytes: int
    compute: Compute
    stack: int = 1


@dataclass(frozen=True)
class BuildRequest:
    """What to build: `count` experts of one network and recipe on one data set, or on it less a held-out fraction."""

    dataset: str
    seed: int = 0
    momentum: float = 0.0
    weight_decay: float = 0.0
    held_out: float = 0.0
    space: str = NORMALISED


class NoExpertsError(InputError):
    """There are no experts of a network on a data set; both are given along."""

    def __init__(self, message: str, hint: str, data: Dataset, network: Network) -> None:
        super().__init__(message, hint)
        self.data, self.network = data, network


def prepare(project: Project, request: BuildRequest) -> tuple[BuildPlan, list[Item]]:
    """Check everything that a build needs, disk space included.

    Raises:
        EspError: unknown data set or network, unusable recipe, or too little disk.
    """
    chosen = project.settings.experts
    data = load_data(request.dataset, project.paths.data, project.paths.raw)
    data = in_space(data, request.space, project.paths.data)
    data = data.held_out(request.held_out) if request.held_out else data
    network = build_network(chosen.network, data.shape, data.num_classes)
    recipe = Recipe(chosen.epochs, chosen.batch, chosen.lr, request.momentum, request.weight_decay)
    plan = library.Plan(network, recipe, request.seed, chosen.dtype, data.space)
    store = store_name(data, network, plan.hash)
    folder = project.paths.experts / store
    done = tuple(n for n in range(chosen.count) if library.places(folder, n)[0].exists())
    missing = tuple(n for n in range(chosen.count) if n not in done)
    need = len(missing) * plan.bytes
    stack = stack_of(project.settings.compute, network, recipe.batch, len(missing), chosen.jobs, plan.bytes_in_training)
    unfinished = [library.places(folder, n)[1] for n in missing]
    held = sum(path.stat().st_size for path in unfinished if path.exists())
    in_training = plan.bytes_in_training * min(stack * chosen.jobs, len(missing))
    _require_space(project.paths.experts, need + max(0, in_training - held))
    flops = 3.0 * network.flops * len(data.train_images) * chosen.epochs * max(1, len(missing))
    compute = resolve(project.settings.compute, flops, chosen.jobs)
    for number in done:  # a process that died, or a lost database, left experts without a row
        record_expert(project.store, _record(project, library.places(folder, number)[0]))
    made = BuildPlan(store, folder, done, missing, need, compute, stack)
    every = project.settings.compute.checkpoint_every
    items = [
        Item(
            folder, compute, n, data.name, project.paths.data, network.spec, recipe, request.seed, chosen.dtype, every,
            request.held_out, data.space, stack,
        )
        for n in missing
    ]  # fmt: skip
    return made, items


def store_name(data: Dataset, network: Network, recipe: str) -> str:
    """Folder name of the experts of one network and recipe on one data set."""
    part = "" if data.split == OFFICIAL else f"-{slug(data.split)}"
    space = "" if data.space == NORMALISED else f"-{data.space}"
    return f"{slug(data.name)}-{data.fingerprint[:6]}-{slug(network.spec)}{space}{part}-{recipe}"


def build(
    project: Project, items: Sequence[Item], on_event: pool.Report, on_wait: locks.OnWait = locks.silent
) -> Iterator[Expert]:
    """Train the experts of `items`; each is recorded and yielded when it is done.

    One that another process is training already is waited for: `on_wait` hears of it, and it is not yielded.
    Events: {"number", "epoch", "loss", "accuracy"} after every epoch.
    """
    paths = [item.path for item in items]
    with signals.stoppable(), locks.claim(paths, on_wait):
        enter(project, [path for path in paths if path.exists()])
        groups = expert_work.stacks([item for item in items if not item.path.exists()])
        for _, trained in pool.run_all(expert_work.train, groups, project.settings.experts.jobs, on_event):
            enter(project, trained.paths)
            yield from map(describe, trained.paths)
            if trained.error:
                raise trained.error


def listing(project: Project, dataset: str | None = None, network: str | None = None) -> list[Expert]:
    """All experts, or those of a data set and network, by store and number."""
    dataset = dataset_name(dataset) if dataset else None
    found = [describe(path) for path in sorted(project.paths.experts.glob("*/expert-*.safetensors"))]
    wanted = canonical_spec(network) if network else None
    return [e for e in found if dataset in (None, e.dataset) and wanted in (None, e.network)]


def describe(path: Path) -> Expert:
    """The header of an expert's file, judged."""
    meta = open_expert(path).meta
    found = complaints(meta, meta["classes"])
    last = meta["curve"][-1]
    return Expert(
        f"{path.parent.name}/{meta['number']}",
        meta["dataset"],
        meta["network"],
        meta["number"],
        meta["epochs"],
        meta["parameters"],
        meta["dtype"],
        last["accuracy"],
        last["loss"],
        path.stat().st_size,
        not found,
        tuple(found),
        path,
        meta.get("split", OFFICIAL),
        meta.get("space", NORMALISED),
    )


def curve(project: Project, name: str) -> tuple[Expert, list[dict[str, Any]]]:
    """One expert, named `STORE/NUMBER` (or `NUMBER` when there is one store), and its curve."""
    path = _find(project, name)
    return describe(path), open_trajectory(path).meta["curve"]


def verify(project: Project, stores: Sequence[str] = ()) -> list[tuple[str, str | None]]:
    """Check every byte of the experts of some stores, or of all: (name, what is wrong or None)."""
    _require_stores(project, stores)
    results: list[tuple[str, str | None]] = []
    for path in sorted(project.paths.experts.glob("*/expert-*.safetensors")):
        if stores and path.parent.name not in stores:
            continue
        name = f"{path.parent.name}/{_number(path)}"
        try:
            artifact.load(path)
            results.append((name, None))
        except EspError as error:
            results.append((name, error.message))
    return results


def is_sound(path: Path) -> bool:
    """Whether the header of an expert's file can be read and proves itself."""
    try:
        open_expert(path)
    except EspError:
        return False
    return True


def enter(project: Project, paths: Sequence[Path]) -> None:
    """Record experts whose files came from elsewhere."""
    for path in paths:
        record_expert(project.store, _record(project, path))


def remove(project: Project, store: str) -> int:
    """Delete a whole store of experts; returns the bytes freed.

    Raises:
        RunError: there is no such store, or an unfinished run needs it.
    """
    folder = project.paths.experts / store
    names = [path.name for path in project.paths.experts.glob("*/") if path.is_dir()]
    if store not in names:
        raise RunError(f"unknown store of experts {store!r}", closest_hint(store, names))
    if users := _unfinished_users(project, store):
        raise RunError(f"the unfinished run {users[0]} needs the experts {store}", "finish or remove the run first")
    locks.require_unclaimed(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    delete_experts(project.store, f"{relative(project, folder)}/")
    shutil.rmtree(folder)
    return size


def for_run(
    project: Project, data: Dataset, network: Network, store: str | None, count: int | None
) -> list[Trajectory]:
    """The experts that a run uses: those of `store`, or of the one store that fits the data set and network.

    Raises:
        NoExpertsError: there are none.
        InputError: several stores fit and none was named.
    """
    fitting: dict[str, list[Path]] = {}
    for path in sorted(project.paths.experts.glob("*/expert-*.safetensors")):
        if store in (None, path.parent.name) and _fits(path, data, network, any_split=store is not None):
            fitting.setdefault(path.parent.name, []).append(path)
    command = f"espctl experts build --dataset {data.name} --network {network.spec}{_options(data)}"
    if not fitting:
        part = "" if data.split == OFFICIAL else f" ({data.split})"
        part += "" if data.space == NORMALISED else f" in pixel space {data.space}"
        other = f"; or condense with --space {NORMALISED}" if data.space != NORMALISED else ""
        raise NoExpertsError(
            f"there are no experts of {network.spec} on {data.name}{part}{_instead(project, store)}",
            f"build them: {command}{other}",
            data,
            network,
        )
    if len(fitting) > 1:
        raise InputError(f"several stores of experts fit: {', '.join(fitting)}", "choose one with --experts NAME")
    paths = next(iter(fitting.values()))
    if count and count > len(paths):
        raise InputError(
            f"{count} experts were asked, there are {len(paths)}", f"build more: {command} --count {count}"
        )
    return [open_trajectory(path) for path in paths[: count or None]]


def _instead(project: Project, store: str | None) -> str:
    """What a named store has, when it does not fit."""
    if not store:
        return ""
    _require_stores(project, [store])
    meta = open_trajectory(next((project.paths.experts / store).glob("expert-*.safetensors"))).meta
    space = meta.get("space", NORMALISED)
    there = "" if space == NORMALISED else f" in pixel space {space}"
    return f" in {store}, which has {meta['network']} on {meta['dataset']} ({meta['fingerprint'][:6]}){there}"


def _require_stores(project: Project, stores: Sequence[str]) -> None:
    known = sorted({path.parent.name for path in project.paths.experts.glob("*/expert-*.safetensors")})
    for store in stores:
        if store not in known:
            raise UnknownNameError("store of experts", store, known)


def _fits(path: Path, data: Dataset, network: Network, any_split: bool) -> bool:
    """Whether a run on `data` can use an expert; what was held out must be the same, unless the store was named."""
    meta = open_trajectory(path).meta
    same = any_split or meta.get("split", OFFICIAL) == data.split
    made = (meta["fingerprint"], meta["network"], meta.get("space", NORMALISED))
    return same and made == (data.fingerprint, network.spec, data.space)


def _options(data: Dataset) -> str:
    """The options of a build for this space and split."""
    space = "" if data.space == NORMALISED else f" --space {data.space}"
    return space + ("" if data.split == OFFICIAL else f" --held-out {data.split.rpartition(' ')[2]}")


def _find(project: Project, name: str) -> Path:
    paths = {f"{p.parent.name}/{_number(p)}": p for p in project.paths.experts.glob("*/expert-*.safetensors")}
    matches = [key for key in paths if key == name or key.endswith(f"/{name}") or key.startswith(name)]
    if name not in matches and len(matches) != 1:
        problem = "is ambiguous" if matches else "is unknown"
        raise ArtifactError(f"expert {name!r} {problem}", closest_hint(name, sorted(paths)))
    return paths[name if name in matches else matches[0]]


def _number(path: Path) -> str:
    """The number of an expert as it is typed; whatever stands in its place where somebody else named the file."""
    text = path.stem.removeprefix("expert-")
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _unfinished_users(project: Project, store: str) -> list[str]:
    users = []
    for request in project.paths.runs.glob("*/request.json"):
        if not (request.parent / "outcome.json").exists():
            entries = files.read_json(request)["request"].get("experts") or []
            if any(Path(entry["path"]).parent.name == store for entry in entries):
                users.append(request.parent.name)
    return users


def _record(project: Project, path: Path) -> ExpertRecord:
    trajectory, beside = open_expert(path), path.with_suffix(".json")
    meta = trajectory.meta
    # A process that died between the two files left an expert without its facts.
    facts = files.read_json(beside) if beside.exists() else {}
    created = facts.get("created") or datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
    return ExpertRecord(
        dataset=meta["dataset"],
        fingerprint=meta["fingerprint"],
        network=meta["network"],
        recipe_hash=path.parent.name.rpartition("-")[2],
        number=meta["number"],
        epochs=meta["epochs"],
        parameters=meta["parameters"],
        dtype=meta["dtype"],
        path=relative(project, path),
        sha256=trajectory.digest,
        bytes=path.stat().st_size,
        accuracy=meta["curve"][-1]["accuracy"],
        created=datetime.fromisoformat(created),
        seconds=facts.get("seconds"),
    )


def relative(project: Project, path: Path) -> str:
    """`path` below the project's home, or absolute when it lies elsewhere."""
    return str(path.relative_to(project.home)) if path.is_relative_to(project.home) else str(path)


def _require_space(folder: Path, need: int) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise InputError(
            f"the experts need {need / 1e9:.1f} GB, with what they need in training, "
            f"and {there} has {free / 1e9:.1f} GB free",
            "free some space, build fewer, or store them with --dtype bfloat16",
        )
