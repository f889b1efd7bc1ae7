"""What methods there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from esp.methods import METHODS, PAPERS
from esp.registry import resolve


@dataclass(frozen=True)
class MethodInfo:
    """A method: its paper, what it needs, how it stores a set unless told otherwise, and its options with defaults."""

    name: str
    paper: str
    needs_experts: bool
    parametrisation: str
    summary: str
    options: dict[str, Any]


def listing() -> list[MethodInfo]:
    """Every method by name."""
    return [describe(name) for name in sorted(METHODS)]


def describe(name: str) -> MethodInfo:
    """One method, or a class of one's own given as `package.module:Class`."""
    kind = resolve(METHODS, "method", name)
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    options = {field.name: field.default for field in dataclasses.fields(kind)}
    paper = PAPERS.get(name, "-")
    return MethodInfo(name, paper, kind.needs_experts, kind.default_parametrisation, summary, options)
