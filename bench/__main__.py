"""Run the bench, and write `DATE-DEVICE-COMMIT-bench.json` and `bench-SIZE.md` into a folder.

python -m bench [PART ...] [--size cpu|cuda|rehearsal] [--output results]

Parts that are named replace their rows in the file of the same day, device, commit and size; the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import epoch, listings, memory, segments, step, training, unrolled
from bench.measure import Row
from bench.setting import SIZES, Size
from esp import files
from espctl.jobs.compute import keep_memory

PARTS: dict[str, Callable[[Size, torch.device], Any]] = {
    "step": step.run,
    "memory": memory.run,
    "unrolled": unrolled.run,
    "epoch": epoch.run,
    "training": training.run,
    "segments": segments.run,
    "listings": listings.run,
}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--size", choices=SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("results"))
    chosen = parser.parse_args()
    if unknown := [part for part in chosen.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    size, device = SIZES[chosen.size], torch.device("cuda" if chosen.size == "cuda" else "cpu")
    keep_memory()
    facts = _facts(size, device)
    path = chosen.output / f"{facts['date']}-{device.type}-{facts['commit']}-bench.json"
    rows, points = _before(path, size, chosen.parts or list(PARTS))
    for part in chosen.parts or PARTS:
        begun = time.monotonic()
        found = PARTS[part](size, device)
        if isinstance(found, tuple):
            points += found[1]
            found = found[0]
        rows[part] = found
        print("\n".join(_line(row) for row in found), flush=True)
        print(f"{part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        _write(path, facts, rows, points)  # after every part: a later one may be cut off


def _facts(size: Size, device: torch.device) -> dict[str, Any]:
    """When, where and of what it is measured."""
    commit = _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "esp", "espctl") else "")
    now = datetime.now(UTC)
    return {
        "date": now.date().isoformat(), "at": now.isoformat(timespec="seconds"), "device": _device(device),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        "commit": commit, "size": size.name,
    }  # fmt: skip


def _before(path: Path, size: Size, parts: list[str]) -> tuple[dict[str, list[Row]], list[dict[str, Any]]]:
    """Rows by part, and points, that an earlier call has written and that are not measured again."""
    body = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows: dict[str, list[Row]] = {}
    if body.get("size") != size.name:
        return rows, []
    for entry in body["rows"]:
        part = entry.pop("measured_by")
        entry.pop("reached")
        if part not in parts:
            rows.setdefault(part, []).append(Row(**entry))
    return rows, body["figure7"] if "unrolled" not in parts else []


def _write(path: Path, facts: dict[str, Any], rows: dict[str, list[Row]], points: list[dict[str, Any]]) -> None:
    ordered = [(part, row) for part in PARTS for row in rows.get(part, ())]
    told = [{**asdict(row), "reached": row.reached, "measured_by": part} for part, row in ordered]
    files.write_text(path, json.dumps({**facts, "rows": told, "figure7": points}, indent=1) + "\n")
    head = "| part | what | against | ours | other | ratio (range) | target | reached | measured on |"
    lines = [head, "| --- " * 9 + "|", *(_line(row) for _, row in ordered), ""]
    lines.append("Measured on " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".")
    lines.append("A ratio is the median of ours / other over pairs taken by turns, its range in parentheses.")
    files.write_text(path.parent / f"bench-{facts['size']}.md", "\n".join(lines) + "\n")


def _line(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}, n = {row.runs})"
    if row.ratio is None and row.low is not None and row.high is not None:
        ratio = f"({_value(row.low, row.unit)} to {_value(row.high, row.unit)}, n = {row.runs})"
    target = "" if row.target is None else f"<= {row.target:.3g}"
    reached = {None: "", True: "yes", False: "**no**"}[row.reached]
    values = [_value(row.ours, row.unit), "" if row.other is None else _value(row.other, row.unit)]
    return "| " + " | ".join([row.part, row.what, row.against, *values, ratio, target, reached, row.note]) + " |"


def _value(value: float, unit: str) -> str:
    if unit == "B":
        return f"{value / 1e6:,.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
