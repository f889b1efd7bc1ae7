"""What the bench measured for Figure 7: time and memory of one synthetic update against the number of inner steps."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp.errors import ArtifactError, InputError

COMMAND = "python -m bench unrolled --output results"


@dataclass(frozen=True)
class Point:
    """One synthetic update after some inner steps.

    Attributes:
        seconds: None where it did not fit into memory.
        peak_memory_bytes: estimated from fewer inner steps where it did not fit.
        fits: whether it was run.
    """

    method: str
    inner_steps: int
    ipc: int
    seconds: float | None
    peak_memory_bytes: float | None
    fits: bool


@dataclass(frozen=True)
class Bench:
    """The points of a bench, and where they were measured."""

    about: str
    points: tuple[Point, ...]


def find(folder: Path) -> Path:
    """The bench under `results` of a folder that measured this last.

    Raises:
        InputError: there is none.
    """
    found = [path for path in folder.glob("results/*bench*.json") if b'"inner_steps"' in path.read_bytes()]
    if not found:
        raise InputError("there is no bench under results", f"measure one with: {COMMAND}; or give --bench FILE")
    return max(found, key=_when)


def _when(path: Path) -> tuple[str, str]:
    """When a bench was made, as it says itself or as its name does."""
    at = re.search(rb'"at": "([^"]+)"', path.read_bytes())
    return at[1].decode(errors="replace") if at else path.name, path.name


def load(path: Path) -> Bench:
    """Read a bench: a list of points, or an object that has them as `figure7` beside what it says of the machine.

    Raises:
        ArtifactError: the file is missing, or is no such bench.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        rows = body["figure7"] if isinstance(body, dict) else body
        points = tuple(sorted((_point(row) for row in rows), key=lambda p: (p.method, p.ipc, p.inner_steps)))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist", f"measure one with: {COMMAND}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ArtifactError(f"{path} is no bench with points of Figure 7", f"measure one with: {COMMAND}") from error
    if not points:
        raise ArtifactError(f"{path} has no points of Figure 7", f"measure them with: {COMMAND}")
    facts = body if isinstance(body, dict) else {}
    said = [str(facts[name]) for name in ("device", "size", "date", "commit") if facts.get(name)]
    return Bench(", ".join(said), points)


def _point(row: dict[str, Any]) -> Point:
    fits = bool(row.get("fits", True))
    memory = row["peak_memory_bytes"] if fits else row.get("estimated")
    numbers = [row["inner_steps"], row["ipc"], row["seconds"] if fits else 0, memory or 0]
    if not all(0 <= float(number) < 1e18 for number in numbers):
        raise ValueError("a number that no bench has")
    return Point(
        str(row["method"]),
        int(row["inner_steps"]),
        int(row["ipc"]),
        float(row["seconds"]) if fits else None,
        None if memory is None else float(memory),
        fits,
    )
