"""Training experts and writing their trajectories (methods.md 11.1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esp import artifact, files
from esp.data.dataset import OFFICIAL, Dataset
from esp.errors import InputError, MismatchError
from esp.networks.flat import Network
from esp.rng import Key
from esp.spaces import NORMALISED
from esp.training import Recipe, Snapshot, Trainer, accuracy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CURVE_IMAGES = 2_000
"""Test images that judge every epoch but the last, which all of them judge."""


@dataclass(frozen=True)
class Plan:
    """What makes an expert what it is; equal plans give equal bytes on one machine.

    Attributes:
        network: architecture.
        recipe: how it is trained; MTT's is plain SGD, 50 epochs of batch 256 at 0.01 with per-image DSA.
        seed: of all experts of a store; the number of the expert is folded in.
        dtype: of the stored snapshots, `float32` or `bfloat16`; training is float32.
        space: the pixel space that the network sees, that of the data set.
    """

    network: Network
    recipe: Recipe
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    space: str = NORMALISED

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype} cannot store snapshots", f"choose one of {', '.join(DTYPES)}")

    def describe(self) -> dict[str, Any]:
        """The plan as JSON, equal to what a file gives back."""
        made = {"network": self.network.spec, "recipe": self.recipe.describe(), "seed": self.seed, "dtype": self.dtype}
        return made if self.space == NORMALISED else {**made, "space": self.space}

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that name the plan."""
        return files.sha256(files.canonical(self.describe()))[:8]

    @property
    def bytes(self) -> int:
        """Size of one expert's file."""
        row = self.network.parameters * DTYPES[self.dtype].itemsize + 4 * self.network.statistics
        return (self.recipe.epochs + 1) * row


def build(
    plan: Plan,
    number: int,
    data: Dataset,
    folder: Path,
    device: torch.device,
    compile: bool = False,  # noqa: A002
    save_every: float = 60.0,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> Path:
    """Train expert `number` of a plan and write `expert-NNNN.safetensors`; go on where an earlier call was stopped.

    Args:
        plan, data: what to train, on what.
        folder: where the file goes.
        save_every: seconds between saves of an unfinished expert, which lies beside the finished ones as `.partial`.
        on_epoch: called with (epochs done, loss, test accuracy).

    Returns:
        The file's path.
    """
    path, partial = folder / f"expert-{number:04d}.safetensors", folder / f"expert-{number:04d}.partial"
    if path.exists():
        _require_same(path, artifact.read_meta(path)[0], plan, data)
        return path
    if data.space != plan.space:
        raise MismatchError(
            f"{data.name} is in pixel space {data.space}, the experts are of {plan.space}", "give both the same space"
        )
    key = Key(plan.seed).fold("expert", number)
    trainer = Trainer(plan.network, plan.recipe, data.flips, device, compile)
    log = _Log.resume(partial, plan, data) or _Log.begin(trainer.start(key), plan, data)
    saved = time.monotonic()
    try:
        for snapshot in trainer.epochs(log.last(device), data.train_images, data.train_labels, data.normalise, key):
            log.add(snapshot, data, plan)
            if on_epoch:
                on_epoch(snapshot.epoch, log.curve[-1]["loss"], log.curve[-1]["accuracy"])
            if time.monotonic() - saved >= save_every and snapshot.epoch < plan.recipe.epochs:
                log.save(partial, plan, data)
                saved = time.monotonic()
    except KeyboardInterrupt:
        log.save(partial, plan, data)
        raise
    log.finish(path, plan, number, data)
    partial.unlink(missing_ok=True)
    return path


class _Log:
    """The snapshots and the curve of an expert in training."""

    def __init__(
        self, rows: list[Tensor], statistics: list[Tensor], velocity: Tensor, curve: list[dict[str, Any]]
    ) -> None:
        self.rows, self.statistics, self.velocity, self.curve = rows, statistics, velocity, curve

    @classmethod
    def begin(cls, start: Snapshot, plan: Plan, data: Dataset) -> _Log:
        point = {"epoch": 0, "loss": None, "accuracy": _test(plan.network, start, data, CURVE_IMAGES)}
        return cls([_copy(start.theta)], [_copy(start.statistics)], start.velocity, [point])

    @classmethod
    def resume(cls, partial: Path, plan: Plan, data: Dataset) -> _Log | None:
        if not partial.exists():
            return None
        found = artifact.load(partial)
        _require_same(partial, found.meta, plan, data)
        rows = found.tensors["theta"].clone()
        statistics = found.tensors.get("statistics", torch.empty(len(rows), 0)).clone()
        return cls(list(rows), list(statistics), found.tensors["velocity"].clone(), found.meta["curve"])

    def last(self, device: torch.device) -> Snapshot:
        theta, velocity, statistics = (x.to(device) for x in (self.rows[-1], self.velocity, self.statistics[-1]))
        return Snapshot(len(self.rows) - 1, theta, velocity, None, statistics)

    def add(self, snapshot: Snapshot, data: Dataset, plan: Plan) -> None:
        # Tested first: an interrupt during the test must not leave a snapshot without its point on the curve.
        count = len(data.test_images) if snapshot.epoch == plan.recipe.epochs else CURVE_IMAGES
        point = {
            "epoch": snapshot.epoch,
            "loss": snapshot.loss,
            "accuracy": _test(plan.network, snapshot, data, count),
        }
        # On a CPU the trainer's vector may be reused: a snapshot is a copy, or all of them would end up equal.
        rows, statistics = [*self.rows, _copy(snapshot.theta)], [*self.statistics, _copy(snapshot.statistics)]
        self.rows, self.statistics, self.velocity, self.curve = (
            rows,
            statistics,
            snapshot.velocity,
            [*self.curve, point],
        )

    def _stacked(self, plan: Plan) -> dict[str, Tensor]:
        """The snapshots, with their statistics where the network has any."""
        found = {"theta": torch.stack(self.rows)}
        return {**found, "statistics": torch.stack(self.statistics)} if plan.network.statistics else found

    def save(self, partial: Path, plan: Plan, data: Dataset) -> None:
        origin = {"fingerprint": data.fingerprint, **_split(data)}
        meta = {"kind": "partial", "curve": self.curve, **origin, **plan.describe()}
        artifact.save(partial, {**self._stacked(plan), "velocity": self.velocity}, meta)

    def finish(self, path: Path, plan: Plan, number: int, data: Dataset) -> None:
        meta = {
            "kind": "trajectory",
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "number": number,
            "epochs": len(self.rows) - 1,
            "parameters": plan.network.parameters,
            "curve": self.curve,
            "classes": data.num_classes,
            **_split(data),
            **plan.describe(),
        }
        tensors = self._stacked(plan)
        if "statistics" in tensors:
            meta["statistics"] = plan.network.statistics
        tensors["theta"] = tensors["theta"].to(DTYPES[plan.dtype])
        artifact.save(path, tensors, meta, by_row=list(tensors))


def _split(data: Dataset) -> dict[str, Any]:
    """How the images were split, where a part of the training set was held out and the judge is that part."""
    return {} if data.split == OFFICIAL else {"split": data.split}


def _require_same(path: Path, meta: dict[str, Any], plan: Plan, data: Dataset) -> None:
    """Refuse to go on from, or to pass for the result, what another plan or data set made."""
    wanted = {"fingerprint": data.fingerprint, **plan.describe()}
    here = (meta.get("split", OFFICIAL), meta.get("space", NORMALISED))
    if here != (data.split, plan.space) or any(meta.get(name) != value for name, value in wanted.items()):
        raise MismatchError(f"{path} was made with another plan or data set", "remove it, or choose another folder")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _test(network: Network, snapshot: Snapshot, data: Dataset, count: int) -> float:
    """Accuracy on `count` test images spread evenly over the test set."""
    rows = torch.linspace(0, len(data.test_images) - 1, min(count, len(data.test_images))).long()
    seen = network.freeze(snapshot.statistics)
    return accuracy(seen, snapshot.theta, data.test_images[rows], data.test_labels[rows], data.normalise, 512)
