"""Random selection: real images of each class, uniformly without replacement. The baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from esp.core import Metrics, State, Task
from esp.errors import InputError
from esp.parametrisation import Pixels
from esp.rng import Key


@dataclass(frozen=True)
class Random:
    """ipc real images per class; nothing is learned."""

    steps: ClassVar[int] = 0
    default_parametrisation: ClassVar[str] = "pixels"
    only_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def check(self, task: Task) -> None:
        """Refuse what cannot hold real images."""
        if not isinstance(task.parametrisation, Pixels):
            raise InputError(
                "random selection stores real images, which only pixels can hold", "use --parametrisation pixels"
            )

    def init(self, task: Task, key: Key) -> State:
        """The selection."""
        return task.start("real", key)

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        """Never called."""
        raise AssertionError("a selection has no steps")
