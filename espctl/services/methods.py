"""What methods there are, and what their presets make of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from esp.data import check_name
from esp.errors import InputError
from esp.methods import METHODS, PAPERS
from esp.presets import PRESETS, Preset, preset, spaces
from esp.registry import resolve


@dataclass(frozen=True)
class MethodInfo:
    """A method: its paper, what it needs, how it stores a set unless told otherwise, its options with defaults.

    `only` is the one way to store a set that it can use, `spaces` are the pixel spaces of its paper's presets, and
    `presets` what `--preset` takes.
    """

    name: str
    paper: str
    year: int | None
    needs_experts: bool
    parametrisation: str
    only: str
    summary: str
    options: dict[str, Any]
    spaces: tuple[str, ...]
    presets: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A method as a preset runs it in one cell; `options` are all of its options."""

    method: str
    preset: str
    dataset: str
    ipc: int
    network: str
    parametrisation: str
    space: str
    origin: str
    note: str
    experts: tuple[int, int] | None
    options: dict[str, Any]
    changed: tuple[str, ...]


def listing() -> list[MethodInfo]:
    """Every method by name."""
    return [describe(name) for name in sorted(METHODS)]


def describe(name: str) -> MethodInfo:
    """One method, or a class of one's own given as `package.module:Class`."""
    kind = resolve(METHODS, "method", name)
    if not dataclasses.is_dataclass(kind):
        raise InputError(f"method {name!r} is not a dataclass", "name a class that is an esp.core.Method")
    method: Any = kind
    paper = PAPERS.get(name, "-")
    year = paper.rpartition(" ")[2]
    return MethodInfo(
        name,
        paper,
        int(year) if year.isdecimal() else None,
        method.needs_experts,
        method.default_parametrisation,
        getattr(method, "only_parametrisation", ""),
        (method.__doc__ or "").strip().partition("\n")[0],
        {field.name: field.default for field in dataclasses.fields(method)},
        spaces(name),
        tuple(PRESETS),
    )


def cell(name: str, chosen: str, dataset: str, ipc: int, network: str) -> Cell:
    """A method's options in one cell; opens no data set.

    Raises:
        UnknownNameError: there is no such method, preset or data set.
        InputError: images per class below 1.
    """
    check_name(dataset)
    if ipc < 1:
        raise InputError(f"{ipc} images per class make no synthetic set", "give --ipc 1 or more")
    info, found = describe(name), preset(name, chosen, dataset, ipc, network)
    return Cell(
        name,
        found.name,
        dataset,
        ipc,
        network,
        info.parametrisation,
        found.space,
        found.origin,
        found.note,
        found.experts,
        {**info.options, **found.options},
        _changed(info, found),
    )


def _changed(info: MethodInfo, found: Preset) -> tuple[str, ...]:
    return tuple(option for option, value in found.options.items() if info.options[option] != value)
