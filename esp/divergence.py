"""Divergence: numbers that are not finite, or have exploded, noticed in the step that made them.

The bounds are generous: they are for runs that are lost, not for those that go badly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from esp.errors import DivergedError
from esp.optim import Tensors, below

EXPLODED = 1e4
"""A synthetic set begins with numbers of about one: normalised pixels, normal codes. One with a tensor whose root mean
square is above this has exploded."""

GROWN = 1e6
"""A metric that is more than so many times its first value in the same call, or than 1 if that is more, has as well."""


@dataclass
class Watch:
    """Notices divergence, and knows the last state without it."""

    method: object
    sound: Tensors
    first: dict[str, float] = field(default_factory=dict)

    def look(self, state: Tensors, metrics: Tensors) -> None:
        """Raise `DivergedError` unless the state and the metrics of its step are sound."""
        step = int(state["step"])
        for name, tensor in metrics.items():
            value = float(tensor)
            bound = GROWN * max(1.0, abs(self.first.setdefault(name, value)))
            if not (math.isfinite(value) and abs(value) <= bound):
                raise self.stopped(step, f"{name} is {value:.3g}", "")
        for name, size in sizes(state).items():
            if not size <= EXPLODED:
                raise self.stopped(step, f"{name} of the synthetic set has a root mean square of {size:.3g}", name)
        if lost := _lost(state):
            raise self.stopped(step, f"{lost} is not finite", "")
        self.sound = state

    def stopped(self, step: int, what: str, culprit: str) -> DivergedError:
        """The error, with the options of the method that could be lowered."""
        error = DivergedError(f"step {step} diverged: {what}", _remedy(self.method, self.sound, culprit))
        error.state = self.sound
        return error


def sizes(state: Tensors) -> dict[str, float]:
    """Root mean square of every tensor of the result; not finite where a number in it is not."""
    result = {**below("set", state), **below("learned", state)}
    return {name: float(value.norm()) / max(1, value.numel()) ** 0.5 for name, value in result.items()}


def is_sound(state: Tensors) -> bool:
    """Whether a state is finite, and its synthetic set has not exploded."""
    return all(size <= EXPLODED for size in sizes(state).values()) and not _lost(state)


def _lost(state: Tensors) -> str:
    """A tensor with a number that is not finite, such as a network or a moment of an optimiser; empty without any.

    An infinite second moment stops Adam without a trace: the set stays finite and does not move any more.
    """
    return next((name for name, value in state.items() if not bool(value.isfinite().all())), "")


def _remedy(method: object, state: Tensors, culprit: str) -> str:
    """Which option to lower: the learning rate of the culprit, or all that move the set and the network.

    Args:
        method: its options that are learning rates are `lr_KIND`, and `rate` of a student.
        state: tells which kinds of parameters the set has.
        culprit: tensor of the result, or empty where it is not known.
    """
    kinds = {name.partition(".")[0] for name in below("set", state)}
    stored = {"pixels", "codes", "decoders"}
    names = [f.name for f in fields(method) if f.name == "rate" or f.name.startswith("lr_")]  # type: ignore[arg-type]
    names = [name for name in names if name.removeprefix("lr_") not in stored - kinds and getattr(method, name)]
    own = [name for name in names if name.removeprefix("lr_") == culprit.partition(".")[0]]
    shown = [f"{name}=... (it is {getattr(method, name):g})" for name in own or names]
    return "lower --set " + ", or --set ".join(shown) if shown else "lower its learning rate"
