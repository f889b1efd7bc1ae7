"""Out of memory: how it shows, and the same work again with fewer images at a time.

Chunks change nothing but the order in which floats are summed, and a step replaces its state and draws from keys. So a
step that did not fit can be repeated with half the chunk: nothing is half done, nothing random is drawn twice, and the
rest of the run is to the bit the one that has this chunk from that step on.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from esp.errors import OutOfMemoryError

T = TypeVar("T")

_SIGNS = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that memory of the device or of the machine was refused."""
    return any(
        isinstance(one, (MemoryError, torch.OutOfMemoryError, OutOfMemoryError))
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in _SIGNS))
        for one in _causes(error)
    )


def fitted(
    compute: Callable[[int], T], chunk: int, what: str, remedy: str, on_chunk: Callable[[int], None] | None = None
) -> tuple[T, int]:
    """`compute(chunk)`, with half the chunk each time that it does not fit into memory.

    Args:
        compute: what is to be done with so many images at a time; it must leave nothing behind when it fails.
        chunk: images at a time to begin with.
        what, remedy: a name for it, and the hint of the error.
        on_chunk: called with every smaller chunk before it is tried.

    Returns:
        The result, and the chunk that it was made with.

    Raises:
        OutOfMemoryError: one image at a time is too much.
    """
    while True:
        try:
            return compute(chunk), chunk
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
                raise
            if chunk <= 1:
                raise OutOfMemoryError(f"out of memory in {what}, even one image at a time", remedy) from error
        # Only here, after the error with its frames is gone, is what the attempt had made free to be given back.
        release()
        chunk //= 2
        if on_chunk:
            on_chunk(chunk)


def release() -> None:
    """Give unused memory back to the device, so that the next attempt finds it in one piece."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__, seen + 1
