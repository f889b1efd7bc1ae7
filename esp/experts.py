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
CHUNK = 512
"""Test images in a pass."""


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

    @property
    def bytes_in_training(self) -> int:
        """Memory for the snapshots and the velocity of an expert in training, and size of its unfinished file."""
        return 4 * (self.recipe.epochs + 2) * (self.network.parameters + self.network.statistics)


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
    path, partial = places(folder, number)
    if path.exists():
        require_same(path, artifact.read_meta(path)[0], plan, data)
        return path
    require_space(plan, data)
    key = key_of(plan, number)
    trainer = Trainer(plan.network, plan.recipe, data.flips, device, compile)
    log = Log.resume(partial, plan, data) or Log.begin(trainer.start(key), plan, data)
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    saved = time.monotonic()
    try:
        for snapshot in trainer.epochs(log.last(device), images, labels, data.normalise, key):
            log.add(snapshot, _test(plan, snapshot, data))
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


def places(folder: Path, number: int) -> tuple[Path, Path]:
    """Files of an expert: the finished and the unfinished one."""
    return folder / f"expert-{number:04d}.safetensors", folder / f"expert-{number:04d}.partial"


def key_of(plan: Plan, number: int) -> Key:
    """What all randomness of an expert comes from."""
    return Key(plan.seed).fold("expert", number)


def judges(plan: Plan, epoch: int, data: Dataset) -> Tensor:
    """Rows of the test images that judge an epoch: all for the last, else some that are spread evenly."""
    count = len(data.test_images) if epoch == plan.recipe.epochs else CURVE_IMAGES
    return torch.linspace(0, len(data.test_images) - 1, min(count, len(data.test_images))).long()


class Log:
    """The snapshots and the curve of an expert in training."""

    def __init__(
        self, rows: list[Tensor], statistics: list[Tensor], velocity: Tensor, curve: list[dict[str, Any]]
    ) -> None:
        self.rows, self.statistics, self.velocity, self.curve = rows, statistics, velocity, curve

    @classmethod
    def begin(cls, start: Snapshot, plan: Plan, data: Dataset) -> Log:
        """Of an expert that has only its first weights."""
        point = {"epoch": 0, "loss": None, "accuracy": _test(plan, start, data)}
        return cls([_copy(start.theta)], [_copy(start.statistics)], start.velocity, [point])

    @classmethod
    def resume(cls, partial: Path, plan: Plan, data: Dataset) -> Log | None:
        """From the file of an unfinished expert; None where there is none."""
        if not partial.exists():
            return None
        found = artifact.load(partial)
        require_same(partial, found.meta, plan, data)
        rows = found.tensors["theta"].clone()
        statistics = found.tensors.get("statistics", torch.empty(len(rows), 0)).clone()
        return cls(list(rows), list(statistics), found.tensors["velocity"].clone(), found.meta["curve"])

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.rows) - 1

    def last(self, device: torch.device) -> Snapshot:
        """Where training goes on."""
        theta, velocity, statistics = (x.to(device) for x in (self.rows[-1], self.velocity, self.statistics[-1]))
        return Snapshot(self.epoch, theta, velocity, None, statistics)

    def add(self, snapshot: Snapshot, accuracy: float) -> None:
        """Enter the next epoch, with its test: an interrupt must not leave a snapshot without its point."""
        point = {"epoch": snapshot.epoch, "loss": snapshot.loss, "accuracy": accuracy}
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
        """Write the file of an unfinished expert."""
        origin = {"fingerprint": data.fingerprint, **_split(data)}
        meta = {"kind": "partial", "curve": self.curve, **origin, **plan.describe()}
        artifact.save(partial, {**self._stacked(plan), "velocity": self.velocity}, meta)

    def finish(self, path: Path, plan: Plan, number: int, data: Dataset) -> None:
        """Write the trajectory."""
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


def require_space(plan: Plan, data: Dataset) -> None:
    """Check that the data are in the pixel space of the plan.

    Raises:
        MismatchError: they are not.
    """
    if data.space != plan.space:
        raise MismatchError(
            f"{data.name} is in pixel space {data.space}, the experts are of {plan.space}", "give both the same space"
        )


def require_same(path: Path, meta: dict[str, Any], plan: Plan, data: Dataset) -> None:
    """Refuse to go on from, or to pass for the result, what another plan or data set made."""
    wanted = {"fingerprint": data.fingerprint, **plan.describe()}
    here = (meta.get("split", OFFICIAL), meta.get("space", NORMALISED))
    if here != (data.split, plan.space) or any(meta.get(name) != value for name, value in wanted.items()):
        raise MismatchError(f"{path} was made with another plan or data set", "remove it, or choose another folder")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _test(plan: Plan, snapshot: Snapshot, data: Dataset) -> float:
    """Accuracy on the test images that judge the epoch."""
    rows = judges(plan, snapshot.epoch, data)
    seen = plan.network.freeze(snapshot.statistics)
    return accuracy(seen, snapshot.theta, data.test_images[rows], data.test_labels[rows], data.normalise, CHUNK)
