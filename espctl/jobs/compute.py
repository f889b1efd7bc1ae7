"""From settings to the device, threads and compilation of one piece of work."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from esp.errors import InputError
from espctl import settings

# An eager CPU core does about this much; a step that runs for minutes pays for half a minute of compilation.
FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}
WORTH_COMPILING = 240.0  # seconds


@dataclass(frozen=True)
class Compute:
    """Where and how work is computed; part of a request, so that a resumed run computes the same way.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads.
        chunk: images per pass.
        compile: whether programs are compiled.
    """

    device: str
    threads: int
    chunk: int
    compile: bool

    def apply(self) -> torch.device:
        """Set the threads of this process, forget its peak of memory, and return the device.

        Raises:
            InputError: the device is not there.
        """
        device = _present(self.device)
        torch.set_num_threads(self.threads)
        _forget_peak(device)
        return device

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def _present(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no CUDA device for {name}", "use --device cpu")
    return device


def device_of(chosen: settings.Compute) -> str:
    """The device that is meant: a GPU for `auto` where there is one."""
    if chosen.device != "auto":
        return chosen.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve(chosen: settings.Compute, flops: float, jobs: int = 1) -> Compute:
    """Fix every `auto`.

    Args:
        chosen: the settings.
        flops: operations of the whole work, about; decides whether compiling pays.
        jobs: processes that share the cores.

    Raises:
        InputError: the device is not there.
    """
    device = device_of(chosen)
    kind = _present(device).type
    threads = chosen.threads or max(1, len(os.sched_getaffinity(0)) // jobs)
    compiled = chosen.compile == "on"
    if chosen.compile == "auto":
        # Inductor needs a C++ compiler on a CPU and Triton's on a GPU.
        able = any(shutil.which(name) for name in ("c++", "g++", "clang++", "gcc"))
        compiled = able and flops / (FLOPS_PER_SECOND[kind] * (threads if kind == "cpu" else 1)) > WORTH_COMPILING
    return Compute(device, threads, chosen.chunk, compiled)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held, or on CUDA the most that tensors have held on the device.

    It counts from the last `Compute.apply`; on a CPU elsewhere than on Linux, from the start of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak(device: torch.device) -> None:
    """One process may do many runs, and what an earlier one held is none of this one's cost."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
