"""The numbers that were published, from the data files beside this module; each names its source."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SOURCE = "Sensors 2023, 23, 8148"
EQUAL_NUMBERS = "equal count of stored numbers"


@dataclass(frozen=True)
class Published:
    """One accuracy of the paper's tables, in percent, with its standard deviation.

    Attributes:
        table: `1` to `4`; the paper's tables differ for the same cell.
        ipc: images per class, 0 for the full data set.
        protocols: evaluation protocols that it was made with; one of them where several are named.
        certain: whether the protocol is stated; otherwise it is inferred.
        source: where the number stands.
    """

    table: str
    dataset: str
    ipc: int
    method: str
    network: str
    mean: float
    sd: float | None
    protocols: tuple[str, ...]
    certain: bool
    source: str


@dataclass(frozen=True)
class BestKnown:
    """The best accuracy published since for one cell, in percent.

    Attributes:
        kind: what is equal between competitors: the count of stored numbers, or the bytes.
        labels: `hard` or `soft`; with a question mark where it is not certain.
        source: venue; `note` says when the number was read elsewhere.
    """

    dataset: str
    ipc: int
    kind: str
    method: str
    mean: float
    sd: float | None
    labels: str
    source: str
    note: str


@cache
def everything() -> tuple[Published, ...]:
    """Every number of the paper's tables."""
    return tuple(
        Published(
            row["table"],
            row["dataset"],
            int(row["ipc"] or 0),
            row["method"],
            row["network"],
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
            tuple(row["protocol"].replace("?", "").split()),
            "?" not in row["protocol"],
            row["source"],
        )
        for row in _read("published.csv")
    )


@cache
def best_known() -> tuple[BestKnown, ...]:
    """The best accuracies published since, by data set and images per class."""
    return tuple(
        BestKnown(
            row["dataset"],
            int(row["ipc"]),
            row["class"],
            row["method"],
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
            row["labels"],
            row["source"],
            row["note"],
        )
        for row in _read("best_known.csv")
    )


def find(table: str, dataset: str, ipc: int, method: str, network: str) -> Published | None:
    """The number of one cell, if there is one."""
    return next(
        (
            p
            for p in everything()
            if (p.table, p.dataset, p.ipc, p.method, p.network) == (table, dataset, ipc, method, network)
        ),
        None,
    )


def best_of(dataset: str, ipc: int) -> tuple[BestKnown, ...]:
    """What is best known for a data set and number of images per class, highest of each kind first."""
    found = [b for b in best_known() if (b.dataset, b.ipc) == (dataset, ipc)]
    return tuple(sorted(found, key=lambda b: (b.kind != EQUAL_NUMBERS, -b.mean)))


def highest(found: Sequence[BestKnown]) -> BestKnown | None:
    """The best among those with an equal count of stored numbers: what our sets compete with."""
    return next((b for b in found if b.kind == EQUAL_NUMBERS), None)


def _read(name: str) -> list[dict[str, str]]:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
