"""(c), (d) Experts and evaluation: many networks at once against one by one, through the program itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.measure import Row, row_of
from bench.setting import Size, data

REPEATS = 3


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _write_data(home / "set.safetensors", size.experts[1])
        return [*_experts(home, size, device), *_evaluation(home, size, device)]


def _write_data(path: Path, images: int) -> None:
    from safetensors.torch import save_file

    made = data(images)
    tensors = {
        "train_images": made.train_images,
        "train_labels": made.train_labels,
        "test_images": made.test_images,
        "test_labels": made.test_labels,
    }
    save_file(tensors, path)


@dataclass(frozen=True)
class Way:
    """A way to train several networks: its name, its flags, and the largest share of the other's time that we want."""

    name: str
    flags: tuple[str, ...]
    target: float | None


ALONE = Way("one by one", ("--jobs", "1", "--stack", "1"), None)


def _ways(device: torch.device, jobs: int) -> list[Way]:
    """On a GPU the stack that the program makes by itself; on a CPU `jobs` processes, and a stack for comparison.

    Args:
        jobs: 0 for as many as the program chooses.
    """
    if device.type == "cuda":
        return [Way("as a stack", ("--jobs", "1", "--stack", "0"), 1 / 3)]
    name = f"{jobs} processes" if jobs else "as the program chooses"
    return [
        Way(name, ("--jobs", str(jobs), "--stack", "0"), 1.05),
        Way("as a stack", ("--jobs", "1", "--stack", "100"), None),
    ]


def _experts(home: Path, size: Size, device: torch.device) -> list[Row]:
    count, images, epochs = size.experts
    words = ["experts", "build", "-d", f"tensors:{home / 'set.safetensors'}", "--network", size.network]
    _run(home / "warm", device, *words, "--count", "1", "--epochs", "1")  # converts the data

    def measure(place: Path, way: Way) -> tuple[float, float]:
        wall = _run(place, device, *words, "--count", str(count), "--epochs", str(epochs), *way.flags)
        return wall, _trained(place.glob("experts/*/expert-*.json"))

    note = f"{count} experts of {size.network}, {images} images, {epochs} epochs"
    ways = _ways(device, len(os.sched_getaffinity(0)))
    rows = [_row("experts", home / "experts", way, measure, note, size) for way in ways]
    for row in rows:
        rates = [3600 * count / seconds for seconds in (row.ours, row.other) if seconds]
        row.note += f"; {rates[0]:,.0f} against {rates[1]:,.0f} experts an hour"
    return rows


def _evaluation(home: Path, size: Size, device: torch.device) -> list[Row]:
    name, seeds = f"tensors:{home / 'set.safetensors'}", 5
    epochs = 20 if size.name != "rehearsal" else 2

    def measure(place: Path, way: Way) -> tuple[float, float]:
        _run(place, device, "condense", "-d", name, "--ipc", "10", "-m", "random", "--network", size.network)
        run = next((place / "runs").iterdir()).name
        words = ["evaluate", run, "--network", size.network, "--protocol", "dsa", "--epochs", str(epochs)]
        wall = _run(place, device, *words, "--seeds", str(seeds), *way.flags)
        return wall, _trained(place.glob("runs/*/evaluations/*.json"))

    note = f"{seeds} networks of {size.network} on 100 images, {epochs} epochs"
    ways, cores = _ways(device, 0), str(len(os.sched_getaffinity(0)))
    if device.type == "cpu":
        ways.append(Way(f"{cores} processes", ("--jobs", cores, "--stack", "0"), None))
    return [_row("evaluation", home / "evaluate", way, measure, note, size) for way in ways]


def _row(
    part: str, home: Path, way: Way, measure: Callable[[Path, Way], tuple[float, float]], note: str, size: Size
) -> Row:
    """One way against one by one, by turns, each in a fresh project.

    Processes are compared by the whole command, for each of them has a start of its own. A stack is compared by the
    seconds that the program has recorded for each network: its start is the same either way.
    """
    processes = way.flags[1] != "1"
    values = []
    for turn in range(1 if size.name == "rehearsal" else REPEATS):
        places = [home.with_name(f"{home.name}-{way.name.replace(' ', '-')}-{turn}-{which}") for which in ("a", "b")]
        ours, other = measure(places[0], way), measure(places[1], ALONE)
        values.append((ours[0], other[0]) if processes else (ours[1], other[1]))
    note += "; whole command" if processes else "; training alone"
    return row_of(part, way.name, ALONE.name, "s", values, way.target, note)


def _trained(records: Iterable[Path]) -> float:
    """Seconds that training took, by the program's own records."""
    return sum(float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for path in records)


def _run(home: Path, device: torch.device, *words: str) -> float:
    """Seconds of a command of the program."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "espctl", *words, "--device", device.type, "--home", str(home), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - begun
