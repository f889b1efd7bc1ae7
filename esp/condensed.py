"""The result of a condensation: one safetensors file that says how to decode it and how to use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from esp import artifact
from esp.data.dataset import Dataset
from esp.errors import ArtifactError, MismatchError
from esp.optim import Tensors
from esp.parametrisation import Frame, Parametrisation, build, decode_all, labels, options_of

SPACE = "normalised"
"""Synthetic images live in pixel space normalised by the channel statistics of their data set."""


@dataclass(frozen=True)
class Condensed:
    """A synthetic set.

    Attributes:
        parametrisation: how it is stored.
        parameters: the stored tensors.
        meta: dataset, fingerprint, mean, std, space, and whatever the maker added.
    """

    parametrisation: Parametrisation
    parameters: Tensors
    meta: dict[str, Any]

    def images(self) -> Tensor:
        """Every decoded image, normalised, [n, c, h, w], classes in order."""
        return decode_all(self.parametrisation, self.parameters)

    def labels(self) -> Tensor:
        """Their classes, int64 [n]."""
        return labels(self.parametrisation)

    def require(self, data: Dataset) -> None:
        """Raise `MismatchError` unless the set was condensed from `data`, in the pixel space that evaluation uses."""
        if self.meta["fingerprint"] != data.fingerprint:
            raise MismatchError(
                f"the synthetic set was condensed from another data set than {data.name}",
                "evaluate it on its own data set",
            )
        if self.meta["space"] != SPACE:
            raise MismatchError(
                f"the synthetic set is in pixel space {self.meta['space']!r}, not {SPACE!r}",
                "evaluate it in its own space",
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
    path: Path, name: str, parametrisation: Parametrisation, parameters: Tensors, data: Dataset, extra: dict[str, Any]
) -> str:
    """Write a synthetic set of `data` stored by the parametrisation called `name`; return the file's digest."""
    meta = {
        "kind": "synthetic",
        "parametrisation": describe(name, parametrisation),
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "space": SPACE,
        "stored_numbers": parametrisation.stored,
        "budget_numbers": parametrisation.frame.budget,
        **extra,
    }
    return artifact.save(path, parameters, meta)


def load(path: Path) -> Condensed:
    """Read and verify a synthetic set.

    Raises:
        ArtifactError: missing, damaged, or not a synthetic set.
    """
    found = artifact.load(path)
    if found.meta.get("kind") != "synthetic":
        raise ArtifactError(f"{path} is not a synthetic set", "give the synthetic.safetensors of a run")
    how = found.meta["parametrisation"]
    frame = Frame(how["classes"], how["ipc"], tuple(how["shape"]))
    return Condensed(build(how["name"], frame, how["options"]), found.tensors, found.meta)
