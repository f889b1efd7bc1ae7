"""What a method refuses before it begins: options that no method can use, and experts that do not fit."""

from __future__ import annotations

import math
from dataclasses import fields

from esp.core import Task
from esp.errors import InputError, UnknownNameError
from esp.spaces import NORMALISED


def require_segments(name: str, task: Task, segment: int, start_max: int) -> None:
    """Refuse a task whose experts are missing, of something else, or end before epoch `start_max + segment`."""
    if task.experts is None or not task.experts.trajectories:
        command = f"espctl experts build --dataset {task.data.name} --network {task.network.spec}"
        space = "" if task.data.space == NORMALISED else f" --space {task.data.space}"
        raise InputError(f"{name} needs expert trajectories", f"build them: {command}{space}")
    task.experts.require(task.network.spec, task.data.fingerprint, segment, task.data.space)
    if start_max + segment > task.experts.epochs:
        raise InputError(
            f"start_max={start_max} plus segment={segment} is more than the {task.experts.epochs} epochs of the "
            "experts",
            f"use --set start_max={max(0, task.experts.epochs - segment)}, or build longer experts",
        )


def require_options(method: object, task: Task, **known: tuple[str, ...]) -> None:
    """Refuse values of a method's options that no method can use with the task.

    Raises:
        UnknownNameError: an option has none of its known values.
        InputError: a start from real images where none can be stored, a learning rate that is negative or not finite,
            or a momentum outside [0, 1).
    """
    require_choices(method, **known)
    name = type(method).__name__
    if getattr(method, "start", "") == "real" and not task.parametrisation.stores_images:
        raise InputError(
            f"{name} cannot start from real images in a latent set",
            "use --set start=noise, or --parametrisation pixels",
        )
    for option in (field.name for field in fields(method) if field.name.startswith("lr_")):  # type: ignore[arg-type]
        value = getattr(method, option)
        if not 0 <= value < math.inf:
            raise InputError(f"{option}={value} of {name} is no learning rate", f"give --set {option}=0 or more")
    if not 0 <= getattr(method, "momentum", 0) < 1:
        raise InputError(f"{name} needs a momentum from 0 to below 1", "correct --set momentum=...")


def require_choices(method: object, **known: tuple[str, ...]) -> None:
    """Raise `UnknownNameError` where an option of a method has none of its known values."""
    for option, values in known.items():
        if getattr(method, option) not in values:
            raise UnknownNameError(option, str(getattr(method, option)), values)
