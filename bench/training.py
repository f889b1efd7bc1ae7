"""(c), (d) Experts and evaluation: many networks at once against one by one, through the program itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
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
        return [_experts(home, size, device), _evaluation(home, size, device)]


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


def _experts(home: Path, size: Size, device: torch.device) -> Row:
    count, images, epochs = size.experts
    base = ["experts", "build", "-d", f"tensors:{home / 'set.safetensors'}", "--count", str(count), "--epochs"]
    base += [str(epochs), "--network", size.network]
    _run(home / "warm", device, *base[:-5], "1", *base[-4:])  # converts the data
    values = []
    for turn in range(REPEATS):
        together = _run(home / f"a{turn}", device, *base, *_together(device))
        alone = _run(home / f"b{turn}", device, *base, *_alone(device))
        values.append((together, alone))
    what, other = _names(device)
    note = f"{count} experts of {size.network}, {images} images, {epochs} epochs; whole command"
    target = 1 / 3 if device.type == "cuda" else 1.05
    return row_of("experts", what, other, "s", values, target, note)


def _evaluation(home: Path, size: Size, device: torch.device) -> Row:
    name, seeds = f"tensors:{home / 'set.safetensors'}", 5
    epochs = 20 if size.name != "rehearsal" else 2
    values = []
    for turn in range(REPEATS):
        seconds = []
        for how, flags in (("a", _together(device)), ("b", _alone(device))):
            place = home / f"evaluate-{how}{turn}"
            _run(place, device, "condense", "-d", name, "--ipc", "10", "-m", "random", "--network", size.network)
            run = next((place / "runs").iterdir()).name
            words = ["evaluate", run, "--network", size.network, "--protocol", "dsa", "--epochs", str(epochs)]
            seconds.append(_run(place, device, *words, "--seeds", str(seeds), *flags))
        values.append((seconds[0], seconds[1]))
    what, other = _names(device)
    note = f"{seeds} networks of {size.network} on 100 images, {epochs} epochs; whole command"
    return row_of("evaluation", what, other, "s", values, 1 / 3 if device.type == "cuda" else 1.05, note)


def _together(device: torch.device) -> list[str]:
    return [] if device.type == "cuda" else ["--jobs", str(os.cpu_count() or 1)]


def _alone(device: torch.device) -> list[str]:
    return ["--stack", "1"] if device.type == "cuda" else ["--jobs", "1"]


def _names(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        return "networks stacked", "one by one"
    return f"{os.cpu_count()} processes", "one by one, all threads"


def _run(home: Path, device: torch.device, *words: str) -> float:
    """Seconds of a command of the program."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "espctl", *words, "--device", device.type, "--home", str(home), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - begun
