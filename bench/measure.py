"""How things are timed: in pairs, by turns, with the median and the range of the ratios; memory in a fresh process."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from espctl.jobs.compute import keep_memory

MAPPED = "MALLOC_MMAP_THRESHOLD_"
Memory = Literal["kept", "freed", "tight"]


@dataclass
class Row:
    """One comparison.

    Attributes:
        part: which part of the bench it belongs to.
        what: ours, in words; `against`: what it is compared with.
        unit: of both values.
        ours, other: medians.
        ratio, low, high: median and range of ours / other over the pairs.
        target: the largest ratio that we want, or the largest value where there is no other; None where none is set.
        note: anything that a reader must know.
    """

    part: str
    what: str
    against: str
    unit: str
    ours: float
    other: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""
    runs: int = 1
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return (self.ours if self.ratio is None else self.ratio) <= self.target


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pairs(
    part: str, what: str, ours: Callable[[], Any], against: str, other: Callable[[], Any], device: torch.device,
    repeats: int, target: float | None = None, note: str = "",
) -> Row:  # fmt: skip
    """Time two pieces of work by turns, after two calls of each to warm up."""
    for work in (ours, other, ours, other):
        work()
    times = [(timed(ours, device), timed(other, device)) for _ in range(repeats)]
    return row_of(part, what, against, "s", times, target, note)


def row_of(
    part: str, what: str, against: str, unit: str, values: list[tuple[float, float]], target: float | None = None,
    note: str = "",
) -> Row:  # fmt: skip
    """A row from pairs of values."""
    ours, other = ([pair[i] for pair in values] for i in (0, 1))
    ratios = sorted(a / b for a, b in values)
    return Row(
        part, what, against, unit, statistics.median(ours), statistics.median(other), statistics.median(ratios),
        ratios[0], ratios[-1], target, note, len(values), {"ours": ours, "other": other},
    )  # fmt: skip


def plain_row(part: str, what: str, unit: str, values: list[float], target: float | None = None, note: str = "") -> Row:
    """A row of something that has no rival, with its range."""
    return Row(
        part, what, "", unit, statistics.median(values), low=min(values), high=max(values), target=target, note=note,
        runs=len(values), values={"ours": values},
    )  # fmt: skip


def isolated(function: Callable[..., Any], *arguments: Any, memory: Memory = "kept") -> Any:
    """The value of a module-level function, computed in a fresh process.

    Args:
        memory: what becomes of freed memory: `kept` as `espctl` does, `freed` by glibc's own rules, or `tight`: every
            block of 64 KiB and more goes back to the system at once.
    """
    before = os.environ.get(MAPPED)
    if memory == "tight":
        os.environ[MAPPED] = "65536"  # read by the fresh process before it runs any code of ours
    begin = keep_memory if memory == "kept" else None
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        if memory == "tight":
            os.environ.pop(MAPPED)
            os.environ.update({MAPPED: before} if before else {})


def peak_memory(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that one call needs at its height beyond what is held before it; on a CPU, of the whole process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the old peak
    work()
    return _status("VmHWM") - before


def resident() -> int:
    """Bytes of anonymous memory of this process; pages of mapped files do not count."""
    return _status("RssAnon")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
