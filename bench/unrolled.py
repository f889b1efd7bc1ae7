"""(b) ESP against trajectory matching: one synthetic update after N inner steps, time and peak memory (Figure 7).

MTT is measured as it is published, one graph of all inner steps, and as `esp.methods.mtt` does it, which keeps none.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.measure import Row, isolated, peak_memory, row_of, timed
from bench.setting import Size, task
from esp.core import synthetic_parameters
from esp.derivatives import loss_sum
from esp.methods.esp import ESP
from esp.methods.mtt import MTT, _see
from esp.rng import Key

SHARE = 0.6
"""A graph that would take more than this share of the memory is not tried."""


def run(size: Size, device: torch.device) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of this part, and the points of Figure 7."""
    points: list[dict[str, Any]] = []
    for ipc in size.unrolled_ipc:
        per_step = 0.0
        for count in size.unrolled_steps:
            need = per_step * count
            if need > SHARE * _memory_of(device):
                points.append({"method": "mtt", "inner_steps": count, "ipc": ipc, "fits": False, "estimated": need})
            else:
                seconds, peak = isolated(_graph, size.narrow, ipc, count, str(device))
                per_step = max(per_step, peak / count)
                points.append(_point("mtt", count, ipc, seconds, peak))
            seconds, peak = isolated(_mtt, size.narrow, ipc, count, size.chunk, str(device))
            points.append(_point("mtt without the graph", count, ipc, seconds, peak))
            points.append(_point("esp", count, ipc, *_esp(size, ipc, count, str(device))))
    return _rows(size, points), points


def _point(method: str, steps: int, ipc: int, seconds: float, peak: int) -> dict[str, Any]:
    values = {"inner_steps": steps, "ipc": ipc, "seconds": seconds, "peak_memory_bytes": peak}
    return {"method": method, **values, "fits": True}


def _rows(size: Size, points: list[dict[str, Any]]) -> list[Row]:
    """The setting that MTT uses for CIFAR-10 at ten images per class, where it fits, and the largest that fits."""
    rows = []
    for ipc in size.unrolled_ipc:
        by = {(p["method"], p["inner_steps"]): p for p in points if p["ipc"] == ipc and p["fits"]}
        for count in size.unrolled_steps:
            if ("mtt", count) not in by or count == 1:
                continue
            mtt, esp = by["mtt", count], by["esp", count]
            target = 1 / 20 if (ipc, count) == (10, 30) else None
            note = f"{size.narrow}, pixels, ipc {ipc}, eager, {size.real_batch} real images per class for L_DM"
            what = f"ESP, one synthetic update, {count} inner steps before"
            other = f"MTT, one through {count} inner steps"
            rows.append(row_of("unrolled", what, other, "s", [(esp["seconds"], mtt["seconds"])], target, note))
            rows.append(
                row_of("unrolled", what, other, "B", [(esp["peak_memory_bytes"], mtt["peak_memory_bytes"])], None, note)
            )
    return rows


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _graph(network: str, ipc: int, steps: int, device: str) -> tuple[float, int]:
    """The update of MTT's paper (equations 2 and 3): autograd goes back through the graph of all inner steps."""
    with tempfile.TemporaryDirectory() as folder:
        made = task(Path(folder), network, "pixels", ipc, 10_000, torch.device(device), False)
        method = MTT(student_steps=steps)
        state = method.init(made, Key(0))

        def update() -> object:
            start, target = (theta.to(made.device) for theta in method._segment(made, 0, Key(0)))
            images, rate = synthetic_parameters(state)["pixels"], state["learned.rate"]
            leaves = images.detach().requires_grad_(), rate.detach().requires_grad_()
            theta = start.clone().requires_grad_()
            for batch in method._batches(made, Key(0)):
                x, targets = _see(made, leaves[0], batch)
                loss = loss_sum(made.network(theta, x)[1], targets, "ce") / len(x)
                (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
                theta = theta - leaves[1] * slope
            return torch.autograd.grad((theta - target).square().sum() / (start - target).square().sum(), leaves)

        return _twice(update, made.device)


def _mtt(network: str, ipc: int, steps: int, chunk: int, device: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        made = task(Path(folder), network, "pixels", ipc, chunk, torch.device(device), False)
        method = MTT(student_steps=steps)
        state = method.init(made, Key(0))

        def update() -> object:
            return method.step(made, state, Key(0))

        return _twice(update, made.device)


def _esp(size: Size, ipc: int, steps: int, device: str) -> tuple[float, int]:
    """Time and memory in processes of their own: the steps before the one that is measured have grown the heap."""
    asked = size.narrow, ipc, steps, size.chunk, size.real_batch, device
    return isolated(_esp_update, *asked)[0], isolated(_esp_update, *asked, memory="tight")[1]


def _esp_update(network: str, ipc: int, steps: int, chunk: int, real: int, device: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        made = task(Path(folder), network, "pixels", ipc, chunk, torch.device(device), False)
        method = ESP(real_batch=real, restart=steps)
        before = replace(method, real_batch=1)  # the steps before the one that is measured only have to be taken
        state = method.init(made, Key(0))
        for _ in range(max(1, steps - 1)):  # one at least, for it brings what stays: code of the libraries, threads
            state, _ = before.step(made, state, Key(0))

        def update() -> object:
            return method.step(made, state, Key(0))

        return _twice(update, made.device)


def _twice(update: Any, device: torch.device) -> tuple[float, int]:
    """Seconds of the second of two calls, and the peak of the first: a heap that has grown once would hide it."""
    peak = peak_memory(update, device)
    return timed(update, device), peak
