"""Training experts and writing their trajectories (methods.md 11.1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esp import artifact, files
from esp.data.dataset import Dataset
from esp.errors import InputError, MismatchError
from esp.networks.flat import Network
from esp.rng import Key
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
    """

    network: Network
    recipe: Recipe
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype} cannot store snapshots", f"choose one of {', '.join(DTYPES)}")

    def describe(self) -> dict[str, Any]:
        """The plan as JSON, equal to what a file gives back."""
        recipe = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.recipe).items()
        }
        return {"network": self.network.spec, "recipe": recipe, "seed": self.seed, "dtype": self.dtype}

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits that name the plan."""
        return files.sha256(files.canonical(self.describe()))[:8]

    @property
    def bytes(self) -> int:
        """Size of one expert's file."""
        return (self.recipe.epochs + 1) * self.network.parameters * DTYPES[self.dtype].itemsize


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

    def __init__(self, rows: list[Tensor], velocity: Tensor, curve: list[dict[str, Any]]) -> None:
        self.rows, self.velocity, self.curve = rows, velocity, curve

    @classmethod
    def begin(cls, start: Snapshot, plan: Plan, data: Dataset) -> _Log:
        point = {"epoch": 0, "loss": None, "accuracy": _test(plan.network, start.theta, data, CURVE_IMAGES)}
        return cls([start.theta.detach().cpu().clone()], start.velocity, [point])

    @classmethod
    def resume(cls, partial: Path, plan: Plan, data: Dataset) -> _Log | None:
        if not partial.exists():
            return None
        found = artifact.load(partial)
        _require_same(partial, found.meta, plan, data)
        return cls(list(found.tensors["theta"].clone()), found.tensors["velocity"].clone(), found.meta["curve"])

    def last(self, device: torch.device) -> Snapshot:
        return Snapshot(len(self.rows) - 1, self.rows[-1].to(device), self.velocity.to(device), None)

    def add(self, snapshot: Snapshot, data: Dataset, plan: Plan) -> None:
        # Tested first: an interrupt during the test must not leave a snapshot without its point on the curve.
        count = len(data.test_images) if snapshot.epoch == plan.recipe.epochs else CURVE_IMAGES
        point = {
            "epoch": snapshot.epoch,
            "loss": snapshot.loss,
            "accuracy": _test(plan.network, snapshot.theta, data, count),
        }
        # On a CPU the trainer's vector may be reused: a snapshot is a copy, or all of them would end up equal.
        row = snapshot.theta.detach().cpu().clone()
        self.rows, self.velocity, self.curve = [*self.rows, row], snapshot.velocity, [*self.curve, point]

    def save(self, partial: Path, plan: Plan, data: Dataset) -> None:
        meta = {"kind": "partial", "fingerprint": data.fingerprint, "curve": self.curve, **plan.describe()}
        artifact.save(partial, {"theta": torch.stack(self.rows), "velocity": self.velocity}, meta)

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
            **plan.describe(),
        }
        artifact.save(path, {"theta": torch.stack(self.rows).to(DTYPES[plan.dtype])}, meta, by_row=["theta"])


def _require_same(path: Path, meta: dict[str, Any], plan: Plan, data: Dataset) -> None:
    """Refuse to go on from, or to pass for the result, what another plan or data set made."""
    wanted = {"fingerprint": data.fingerprint, **plan.describe()}
    if any(meta.get(name) != value for name, value in wanted.items()):
        raise MismatchError(f"{path} was made with another plan or data set", "remove it, or choose another folder")


def _test(network: Network, theta: Tensor, data: Dataset, count: int) -> float:
    """Accuracy on `count` test images spread evenly over the test set."""
    rows = torch.linspace(0, len(data.test_images) - 1, min(count, len(data.test_images))).long()
    return accuracy(network, theta, data.test_images[rows], data.test_labels[rows], data.normalise, 512)
