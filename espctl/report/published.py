"""The numbers that were published, from the data file beside this module (Sensors 2023, 23, 8148, Tables 1 to 4)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SOURCE = "Sensors 2023, 23, 8148"


@dataclass(frozen=True)
class Published:
    """One accuracy in percent, with its standard deviation."""

    table: str
    dataset: str
    ipc: int
    method: str
    network: str
    mean: float
    sd: float | None


@cache
def everything() -> tuple[Published, ...]:
    """Every number of the paper's tables."""
    text = (files(__package__) / "published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            row["table"],
            row["dataset"],
            int(row["ipc"] or 0),
            row["method"],
            row["network"],
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
        )
        for row in csv.DictReader(text.splitlines())
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
