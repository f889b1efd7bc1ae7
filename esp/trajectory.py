"""Expert trajectories on disk: one safetensors file each, `theta` [epochs + 1, p], a snapshot per row (ESP 3.1).

Networks with batch normalisation have their running statistics beside it, `statistics` [epochs + 1, b].
Rows are digested one by one, so a segment is read as one slice of the file, verified, and nothing else is touched: a
store of a thousand experts costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from esp.artifact import read_meta, read_rows, require
from esp.errors import ArtifactError, InputError, MismatchError
from esp.files import DAMAGED
from esp.parts import part
from esp.spaces import NORMALISED
from esp.subspace import Subspace, span

_NEEDED = {"network": str, "fingerprint": str, "epochs": int}
_Key = tuple[int, int, int, str]
_Segment = tuple[Tensor, Subspace]
_TOLD = {**dict.fromkeys(("dataset", "dtype"), str), **dict.fromkeys(("number", "parameters", "classes"), int)}


@dataclass(frozen=True)
class Trajectory:
    """The header of one expert's file.

    Attributes:
        path: the file.
        digest: its digest.
        meta: dataset, fingerprint, network, epochs, number, recipe, curve (see `esp.experts`).
    """

    path: Path
    digest: str
    meta: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Epochs trained; the file has one more snapshot."""
        return int(self.meta["epochs"])

    def segment(self, start: int, length: int) -> Tensor:
        """Snapshots `start` to `start + length`, float32 [length + 1, p].

        Raises:
            InputError: the segment ends after the trajectory.
            ArtifactError: the rows are damaged.
        """
        if start + length > self.epochs:
            raise InputError(
                f"a segment of {length} epochs from epoch {start} does not fit a trajectory of {self.epochs}",
                f"use a segment of at most {self.epochs} epochs, or build longer experts",
            )
        return read_rows(self.path, "theta", start, start + length + 1).to(torch.float32)

    def statistics(self, epoch: int) -> Tensor:
        """Running statistics [b] of batch normalisation after `epoch` epochs; of length 0 without any.

        Raises:
            ArtifactError: there is no such row, or it is damaged.
        """
        if not self.meta.get("statistics"):
            return torch.empty(0)
        return read_rows(self.path, "statistics", epoch, epoch + 1)[0]


def open_trajectory(path: Path) -> Trajectory:
    """Read and verify the header of a trajectory file.

    Raises:
        ArtifactError: missing or damaged.
        MismatchError: the file is something else.
    """
    meta, digest = read_meta(path)
    if meta.get("kind") != "trajectory":
        raise MismatchError(f"{path} is not an expert trajectory", "give a file that `espctl experts build` made")
    require(path, meta, _NEEDED)
    return Trajectory(path, digest, meta)


def open_expert(path: Path) -> Trajectory:
    """As `open_trajectory`, of a file that also says what `esp.experts.build` does: numbers, and a curve with points.

    Raises:
        ArtifactError, MismatchError: as there, or one of them is missing.
    """
    found = open_trajectory(path)
    require(path, found.meta, {**_TOLD, "curve": list})
    for point in found.meta["curve"] or [None]:
        if not isinstance(point, dict):
            raise ArtifactError(f"{path}: its curve has no points", DAMAGED)
        require(path, point, {"accuracy": (int, float), "loss": (int, float, type(None))})
    return found


@dataclass(frozen=True)
class Experts:
    """Trajectories of one network on one data set, and the subspaces of their segments.

    The segment that was asked for last is kept, and at most one more that is on its way.
    """

    trajectories: tuple[Trajectory, ...]
    _cache: dict[_Key, _Segment] = field(default_factory=dict, repr=False, compare=False)
    _ahead: dict[_Key, Future[_Segment]] = field(default_factory=dict, repr=False, compare=False)

    def require(self, network: str, fingerprint: str, length: int, space: str = NORMALISED) -> None:
        """Check that all trajectories are of a network, of the data of a fingerprint in a space, and `length` epochs.

        Raises:
            MismatchError, InputError: naming the file and what differs.
        """
        for trajectory in self.trajectories:
            for name, wanted in (("network", network), ("fingerprint", fingerprint), ("space", space)):
                found = trajectory.meta.get(name, NORMALISED)  # older files do not name their space
                if found != wanted:
                    raise MismatchError(
                        f"{trajectory.path} has {name} {found}, not {wanted}",
                        "build experts for this data set and network",
                    )
            if trajectory.epochs < length:
                raise InputError(
                    f"{trajectory.path} has {trajectory.epochs} epochs, but segments of {length} were asked",
                    "shorten the segment (--set segment=...) or build longer experts",
                )

    @property
    def epochs(self) -> int:
        """Epochs of the shortest trajectory."""
        return min(trajectory.epochs for trajectory in self.trajectories)

    def segment(self, expert: int, start: int, length: int, device: torch.device) -> tuple[Tensor, Subspace]:
        """First snapshot [p] and subspace of a segment; the same to the bit whether it was prepared or not."""
        key = (expert, start, length, str(device))
        if key not in self._cache:
            self._cache.clear()
            with part("reading"):
                ahead = self._ahead.pop(key, None)
                self._cache[key] = ahead.result() if ahead else self._read(expert, start, length, device)
        return self._cache[key]

    def prepare(self, expert: int, start: int, length: int, device: torch.device) -> None:
        """Begin to read the segment that is asked for next, in a thread of its own that ends with it.

        What fails there is raised by `segment`, if that is asked for it. While one is on its way no other is begun.
        """
        key = (expert, start, length, str(device))
        if key in self._cache or any(not future.done() for future in self._ahead.values()):
            return
        self._ahead.clear()
        self._ahead[key] = _begun(lambda: self._read(expert, start, length, device))

    def _read(self, expert: int, start: int, length: int, device: torch.device) -> _Segment:
        snapshots = self.trajectories[expert].segment(start, length).to(device)
        return snapshots[0].clone(), span(snapshots)


def _begun(work: Callable[[], _Segment]) -> Future[_Segment]:
    """What `work` will return, which is being done beside."""
    future: Future[_Segment] = Future()

    def fulfil() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result hears of it
            future.set_exception(error)

    Thread(target=fulfil, name="esp-segment").start()
    return future


def complaints(meta: dict[str, Any], classes: int) -> list[str]:
    """What is wrong with an expert, judged by its curve; empty when it is healthy."""
    accuracies: Sequence[float] = [point["accuracy"] for point in meta["curve"]]
    losses: Sequence[float] = [point["loss"] for point in meta["curve"] if point["loss"] is not None]
    found = []
    if accuracies[-1] < min(2 / classes, (1 + 1 / classes) / 2):
        found.append(f"test accuracy {accuracies[-1]:.1%} is close to chance: train longer or raise the learning rate")
    if max(accuracies) - accuracies[-1] > 0.1:
        found.append(
            f"test accuracy fell by {max(accuracies) - accuracies[-1]:.1%} from its best: lower the learning rate"
        )
    if losses and losses[-1] > losses[0]:
        found.append("the training loss rose: lower the learning rate")
    return found
