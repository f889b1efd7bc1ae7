"""Randomness without state: a key names a stream, and the same key always gives the same numbers.

A run has one seed. Everything random in it asks for a generator by the path of names and counters that leads
there: `Key(seed).fold("step", 120, "augment")`. Nothing has to be saved to resume, streams never overlap by
accident, and drawing more numbers in one place changes nothing anywhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Key:
    """A name for one stream of random numbers: the seed of the run and a path below it."""

    seed: int
    path: tuple[str | int, ...] = ()

    def fold(self, *names: str | int) -> Key:
        """The key `names` below this one."""
        return Key(self.seed, self.path + names)

    def integer(self) -> int:
        """A 63-bit integer that depends on the seed and the whole path."""
        text = repr((self.seed, self.path)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def generator(self) -> torch.Generator:
        """A fresh CPU generator at the start of this stream.

        Numbers are always drawn on the CPU and moved, so that they do not depend on the device.
        """
        return torch.Generator().manual_seed(self.integer())
