"""From settings to the device, threads and compilation of one piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from esp.errors import InputError
from esp.networks.flat import Network
from esp.stacked import bytes_each, require_stackable, stackable
from espctl import settings

# An eager CPU core does about this much; a step that runs for minutes pays for half a minute of compilation.
FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}
CHUNK = {"cpu": 64, "cuda": 512}  # images; more need memory and save no time
WORTH_COMPILING = 240.0  # seconds
WORTH_PROCESSES = 120.0  # seconds; a process needs a few of them to begin, and saves a twentieth
PROCESS_TIME = 0.95
"""Time of two networks in two processes, against one after the other in as many threads: ConvNet-3, widths 8 to 128."""
STEP_SECONDS = 0.003
"""A step takes a CPU no less, however small the network: so much it takes to start its operations."""
FILLED = 0.7
"""The part of a GPU's free memory that a stack is made for; what it needs is an estimate."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of glibc's malloc.h."""
HELD_BYTES = 2 * 10**9
"""Of the trajectories that are in training, so that an interrupt does not take long to save them."""


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
        """Set threads and memory of this process, forget its peak of memory, and return the device.

        Raises:
            InputError: the device is not there.
        """
        device = _present(self.device)
        torch.set_num_threads(self.threads)
        keep_memory()
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
    return Compute(device, threads, chosen.chunk or CHUNK[kind], compiled)


def stack_of(
    chosen: settings.Compute, network: Network, batch: int, most: int, jobs: int = 1, host_bytes: int = 0
) -> int:
    """Networks that are trained as one program.

    By itself it is more than one on a GPU alone. There it is as many as fit, in stacks of equal size. On a CPU the
    numbers of a network would depend, to rounding, on which others are still to be trained; and there only the
    smallest networks gain by it.

    Args:
        chosen: the settings.
        network, batch: what is trained, and images of a step.
        most: networks that are to be trained.
        jobs: processes that share the device.
        host_bytes: memory of this machine that each needs while it is trained.

    Raises:
        InputError: a stack was asked for, and the network cannot be stacked.
    """
    if chosen.stack > 1:
        require_stackable(network)
        return max(1, min(chosen.stack, most))
    device, share = _present(device_of(chosen)), -(-most // jobs)
    if chosen.stack == 1 or share <= 1 or device.type != "cuda" or not stackable(network):
        return 1
    free = torch.cuda.mem_get_info(device)[0]
    fits = int(FILLED * free / jobs) // bytes_each(network, batch)
    if host_bytes:
        fits = min(fits, HELD_BYTES // jobs // host_bytes)
    stacks = -(-share // max(1, fits))
    return -(-share // stacks)


def jobs_of(chosen: settings.Compute, most: int, flops: float, steps: int) -> int:
    """Processes that train networks beside each other, the faster of one and one for each core of a CPU.

    Where the last networks would leave cores idle, that is one. It follows from the whole of the work and not from what
    is left of it: threads, and with them the rounding of sums, are those of an uninterrupted call.

    Args:
        chosen: the settings.
        most: networks that are trained.
        flops: operations of all of them.
        steps: of each.
    """
    cores = len(os.sched_getaffinity(0)) // max(1, chosen.threads)
    if most < 2 or cores < 2 or chosen.stack > 1 or _present(device_of(chosen)).type != "cpu":
        return 1
    seconds = max(flops / (FLOPS_PER_SECOND["cpu"] * cores), most * steps * STEP_SECONDS)
    jobs = min(cores, most)
    rounds = -(-most // jobs)
    return jobs if seconds > WORTH_PROCESSES and PROCESS_TIME * rounds * jobs <= most else 1


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


def keep_memory() -> None:
    """Have this process keep the memory that tensors free, unless the user set up glibc's malloc otherwise.

    By itself glibc gives blocks above 32 MB back to the system at once, and the next tensor of that size takes them
    anew, zeroed page by page: a third of the time of an epoch of ConvNet-3 (`python -m bench epoch`). What is held
    grows by a third, as freed blocks are not always found again.
    """
    if any(name.startswith(("MALLOC_MMAP_", "MALLOC_TRIM_")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # a library of C that is not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _forget_peak(device: torch.device) -> None:
    """One process may do many runs, and what an earlier one held is none of this one's cost."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
