"""The result of a condensation: one safetensors file that says how to decode it and how to use it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esp import artifact, compression
from esp.data.dataset import Dataset, to_pixels
from esp.errors import ArtifactError, InputError, MismatchError
from esp.files import DAMAGED
from esp.optim import Tensors
from esp.parametrisation import Frame, Parametrisation, build, decode_all, labels, options_of
from esp.spaces import NORMALISED

MOST = 2**31
"""Numbers that a set may claim to be made of."""
LABELS = "learned.labels"
"""The tensor of label rows in the file of a set that has them."""


@dataclass(frozen=True)
class Condensed:
    """A synthetic set.

    Attributes:
        parametrisation: how it is stored.
        parameters: the stored tensors.
        meta: dataset, fingerprint, mean, std, space, and whatever the maker added.
        soft: label rows [n, classes] that were learned, which sum to about 1; None for a set of hard labels.
    """

    parametrisation: Parametrisation
    parameters: Tensors
    meta: dict[str, Any]
    soft: Tensor | None = None

    @property
    def space(self) -> str:
        """Name of the pixel space of the images."""
        return str(self.meta["space"])

    @property
    def rate(self) -> float | None:
        """The learning rate that was learned with the images, if any."""
        rate = self.meta.get("learned", {}).get("rate")
        return None if rate is None else float(rate)

    def images(self) -> Tensor:
        """Every decoded image in the set's pixel space, [n, c, h, w], classes in order."""
        return decode_all(self.parametrisation, self.parameters)

    def labels(self) -> Tensor:
        """Their classes, int64 [n]."""
        return labels(self.parametrisation)

    def targets(self) -> Tensor:
        """What a network is trained towards: the learned label rows [n, classes], or else the classes int64 [n]."""
        return self.labels() if self.soft is None else self.soft

    def pixels(self, data: Dataset | None = None) -> Tensor:
        """Every decoded image as pixels for people to look at, uint8 [n, c, h, w].

        Args:
            data: the data set in the set's pixel space; only needed where that is a whitened one.

        Raises:
            MismatchError: it is needed and not given, or is another one.
        """
        if self.space == NORMALISED:
            return to_pixels(self.images(), self.meta["mean"], self.meta["std"])
        if data is None:
            raise MismatchError(
                f"images in pixel space {self.space!r} cannot be drawn without their data set", "give the data set"
            )
        self.require(data)
        return data.denormalise(self.images())

    def require(self, data: Dataset) -> None:
        """Raise `MismatchError` unless the set was condensed from `data`, in the pixel space that `data` is in."""
        if self.meta["fingerprint"] != data.fingerprint:
            raise MismatchError(
                f"the synthetic set was condensed from another data set than {data.name}",
                "evaluate it on its own data set",
            )
        if self.space != data.space:
            raise MismatchError(
                f"the synthetic set is in pixel space {self.space!r}, the data set in {data.space!r}",
                f"bring the data set there: esp.data.zca.in_space(data, {self.space!r}, cache)",
            )


def describe(name: str, parametrisation: Parametrisation) -> dict[str, Any]:
    """A parametrisation as JSON: name, options, and what it is for."""
    frame = parametrisation.frame
    return {
        "name": name,
        "options": options_of(parametrisation),
        "classes": frame.classes,
        "ipc": frame.ipc,
        "shape": list(frame.shape),
    }


def save(
    path: Path,
    name: str,
    parametrisation: Parametrisation,
    parameters: Tensors,
    data: Dataset,
    extra: dict[str, Any],
    learned: Tensors | None = None,
) -> str:
    """Write a synthetic set of `data` stored by the parametrisation called `name`; return the file's digest.

    What was `learned` with it (see `esp.core.State`) goes along: single numbers into the metadata, label rows beside
    the parameters, where they count as stored numbers.
    """
    found = learned or {}
    rows = {LABELS: found["labels"].to(torch.float32)} if "labels" in found else {}
    numbers = {key: float(value) for key, value in found.items() if not value.ndim}
    meta = {
        "kind": "synthetic",
        "parametrisation": describe(name, parametrisation),
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "flips": data.flips,
        "space": data.space,
        "stored_numbers": stored_numbers(parametrisation, found),
        "budget_numbers": parametrisation.frame.budget,
        **({"learned": numbers} if numbers else {}),
        **extra,
    }
    return artifact.save(path, {**parameters, **rows}, meta)


def stored_numbers(parametrisation: Parametrisation, learned: Tensors) -> int:
    """Numbers that a set stores: its parameters, and label rows that were learned with it."""
    return parametrisation.stored + (learned["labels"].numel() if "labels" in learned else 0)


def load(path: Path) -> Condensed:
    """Read and verify a synthetic set.

    Raises:
        ArtifactError: missing, damaged, or not a synthetic set.
    """
    found = artifact.load(path)
    if found.meta.get("kind") != "synthetic":
        raise ArtifactError(f"{path} is not a synthetic set", "give the synthetic.safetensors of a run")
    how = _described(path, found.meta)
    frame = Frame(how["classes"], how["ipc"], tuple(how["shape"]))
    made = build(how["name"], frame, how["options"])
    tensors, coded = found.tensors, found.meta.get("compression")
    if coded is not None:
        artifact.require(path, found.meta, {"compression": dict})
        tensors = compression.decompress(tensors, coded)
    parameters = {name: tensor for name, tensor in tensors.items() if name != LABELS}
    _fitting(path, made, parameters, tensors.get(LABELS))
    return Condensed(made, parameters, found.meta, tensors.get(LABELS))


def _described(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The description of a parametrisation in a header, whose every value may be made up."""
    texts, lists = dict.fromkeys(("dataset", "fingerprint", "space"), str), dict.fromkeys(("mean", "std"), list)
    artifact.require(path, meta, {**texts, **lists, "parametrisation": dict})
    how: dict[str, Any] = meta["parametrisation"]
    artifact.require(path, how, {"name": str, "options": dict, "classes": int, "ipc": int, "shape": list})
    artifact.require(path, {"learned": {}, **meta}, {"learned": dict})
    sizes = [how["classes"], how["ipc"], *how["shape"]]
    numbers = [*meta["mean"], *meta["std"], meta.get("learned", {}).get("rate") or 0.0]
    whole = all(isinstance(size, int) and 0 < size <= MOST for size in sizes)
    real = all(isinstance(number, int | float) and abs(number) < MOST for number in numbers)
    if not (whole and real and len(sizes) == 5) or math.prod(sizes) > MOST:
        raise ArtifactError(f"{path} does not say which images it holds", DAMAGED)
    if not len(meta["mean"]) == len(meta["std"]) == how["shape"][0]:
        raise ArtifactError(f"{path} has another number of means than of channels", DAMAGED)
    return how


def _fitting(path: Path, made: Parametrisation, parameters: Tensors, soft: Tensor | None) -> None:
    """Refuse tensors that are not those of the parametrisation."""
    count = made.frame.classes * made.units * made.multiplicity
    try:
        one = tuple(made.decode(parameters, 0, 1).shape)
    except (KeyError, RuntimeError, IndexError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} does not hold the tensors of its parametrisation", DAMAGED) from error
    numbers = sum(tensor.numel() for tensor in parameters.values())
    odd = soft is not None and tuple(soft.shape) != (count, made.frame.classes)
    if numbers != made.stored or one != (made.multiplicity, *made.frame.shape) or odd:
        raise ArtifactError(f"{path} does not hold as many numbers as its parametrisation stores", DAMAGED)


def save_compressed(path: Path, source: Condensed, bits: int, extra: dict[str, Any]) -> tuple[str, compression.Sizes]:
    """Write `source` with numbers of so many bits (see `esp.compression`); return the file's digest, and the sizes.

    Raises:
        InputError: the set is compressed already, or the bits are none that are offered.
    """
    if "compression" in source.meta:
        raise InputError(
            f"the set has {source.meta['compression']['bits']}-bit numbers already", "compress the set it was made from"
        )
    stored = source.parameters if source.soft is None else {**source.parameters, LABELS: source.soft}
    tensors, described, sizes = compression.compress(stored, bits)
    return artifact.save(path, tensors, {**source.meta, **extra, "compression": described}), sizes
