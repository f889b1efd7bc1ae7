"""The parts of a step under the names that a profile shows: where time goes, in the terms of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.autograd import profiler

P = ParamSpec("P")
R = TypeVar("R")

PREFIX = "esp."
NAMES = (
    "reading", "real images", "decoding", "augmentation", "network: features", "network: parameter gradient",
    "network: mixed derivative", "network: gradient and its pullback", "network: adjoint", "network: feature pullback",
    "training a network", "projection", "decoding and augmentation, backwards", "optimiser",
)  # fmt: skip
"""Every part; where one is inside another, the outer one counts."""


@contextmanager
def part(name: str) -> Iterator[None]:
    """Say that what is done in the block is the part `name`.

    While a profiler is on, the device is waited for at both ends, so that the time between them is that of the part.
    Without one the block costs a microsecond, and nothing waits.
    """
    if not profiler._is_profiler_enabled:
        yield
        return
    _wait()
    with profiler.record_function(PREFIX + name):
        yield
        _wait()


def is_part(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function the part `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():  # the program is the part
                return function(*args, **kwargs)
            with part(name):
                return function(*args, **kwargs)

        return call

    return decorate


def _wait() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
