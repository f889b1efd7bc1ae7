"""(e) A segment out of a store of 1000 experts, against loading a pickled buffer of ten as the rivals do."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.measure import Row, isolated, pairs, plain_row, resident, row_of
from bench.setting import Size, task
from esp import artifact
from esp.networks.flat import build as build_network
from esp.rng import Key
from esp.trajectory import open_trajectory

EPOCHS, LENGTH = 50, 10
USED = 10


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part. The store is 1000 links to one file of zeros with holes: its size is what matters."""
    network = build_network("convnet3" if size.name != "rehearsal" else size.network, (3, 32, 32), 10)
    count = 1_000 if size.name != "rehearsal" else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _store(folder, network.parameters, count)
        _pickle(folder / "buffer.pt", network.parameters)
        gigabytes = count * (folder / "expert-0000.safetensors").stat().st_size / 1e9
        setting = f"{LENGTH + 1} of {EPOCHS + 1} snapshots of convnet3, verified; a store of {gigabytes:.0f} GB"
        found = isolated(_segments, folder, count)
        loading = [isolated(_load, folder / "buffer.pt") for _ in range(3)]
        beside = _beside(folder / "beside", size, device)
    cold, warm, grown = found
    rival = "a pickled buffer of 10 experts, loaded"
    return [
        plain_row("reading", "a segment, warm", "s", warm, 0.020, setting),
        plain_row("reading", "a segment, first read", "s", cold, None, setting),
        row_of("reading", "a segment", rival, "s", [(warm[i], loading[i][0]) for i in range(3)], None, setting),
        row_of("reading", "memory held after 100 segments of 100 experts", rival, "B",
               [(max(grown, 4096), loading[i][1]) for i in range(3)], 0.01, setting),
        beside,
    ]  # fmt: skip


def _beside(folder: Path, size: Size, device: torch.device) -> Row:
    """Whether it pays to prepare the next segment in a thread while this one is used."""
    folder.mkdir()
    made = task(folder, size.network, "pixels", 1, size.chunk, device, False)
    assert made.experts is not None
    experts, theta = made.experts, made.network.init(Key(0)).to(device)
    images = torch.randn(size.chunk, *made.data.shape).to(device)
    targets = torch.nn.functional.one_hot(torch.arange(size.chunk) % 10, 10).to(images)
    starts = itertools.count()

    def walk(ahead: bool) -> None:
        start = next(starts) % 40
        if ahead:
            experts.prepare(0, start, LENGTH, device)
        for _ in range(USED):
            made.derivatives().parameter_gradient(theta, images, targets)
        experts.segment(0, start, LENGTH, device)

    return pairs(
        "reading", f"{USED} passes and the next segment, prepared beside them", lambda: walk(True),
        "prepared after them", lambda: walk(False), device, size.repeats, None,
        f"{size.network}, passes over {size.chunk} images, {torch.get_num_threads()} threads; "
        "ESP prepares beside on CUDA alone",
    )  # fmt: skip


def _store(folder: Path, parameters: int, count: int) -> None:
    """`count` experts, each a sparse file of its own."""
    first = folder / "expert-0000.safetensors"
    theta = torch.zeros(EPOCHS + 1, parameters)
    meta = {"kind": "trajectory", "epochs": EPOCHS, "network": "convnet3", "fingerprint": "zeros"}
    artifact.save(first, {"theta": theta}, meta, by_row=("theta",))
    size = first.stat().st_size
    header = first.read_bytes()[: size - theta.numel() * 4]
    for number in range(1, count):
        with (folder / f"expert-{number:04d}.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(size)


def _pickle(path: Path, parameters: int) -> None:
    torch.save([torch.randn(EPOCHS + 1, parameters) for _ in range(10)], path)  # noqa: TID251 (what rivals do)


def _segments(folder: Path, count: int) -> tuple[list[float], list[float], int]:
    """Seconds of first and of repeated reads, and bytes held in the end beyond those before."""
    experts = [open_trajectory(folder / f"expert-{number:04d}.safetensors") for number in range(0, count, count // 10)]
    experts[0].segment(0, LENGTH)
    before = resident()
    times: list[list[float]] = [[], []]
    for again in (0, 1):
        for expert in experts:
            for start in range(0, 40, 4):
                begun = time.perf_counter()
                expert.segment(start, LENGTH)
                times[again].append(time.perf_counter() - begun)
    return times[0], times[1], resident() - before


def _load(path: Path) -> tuple[float, int]:
    before, begun = resident(), time.perf_counter()
    found: Any = torch.load(path, weights_only=True)  # noqa: TID251 (what rivals do)
    return time.perf_counter() - begun, resident() - before + 0 * len(found)
