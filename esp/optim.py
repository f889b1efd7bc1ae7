"""Optimisers as pure functions on named tensors, so that their state is part of a checkpoint like everything else.

The rules are those of `torch.optim.SGD` and `torch.optim.Adam`; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """`{prefix.name: tensor}`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The entries `prefix.name`, under `name`."""
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def start_adam(parameters: Mapping[str, Tensor]) -> Tensors:
    """Zero moments for `parameters`."""
    zeros = {name: torch.zeros_like(value) for name, value in parameters.items()}
    return {**prefixed("m", zeros), **prefixed("v", {name: value.clone() for name, value in zeros.items()})}


def adam(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rates: Mapping[str, float],
    step: int,
) -> tuple[Tensors, Tensors]:
    """One Adam step (betas 0.9 and 0.999, epsilon 1e-8) with a learning rate for each tensor; `step` counts from 0.

    Returns:
        New parameters and new state (`m.name`, `v.name`).
    """
    new, moments = {}, {}
    for name, value in parameters.items():
        gradient = gradients[name]
        m = 0.9 * state[f"m.{name}"] + 0.1 * gradient
        v = 0.999 * state[f"v.{name}"] + 0.001 * gradient * gradient
        scale = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        new[name] = value - rates[name] * (m / (1 - 0.9 ** (step + 1))) / scale
        moments[f"m.{name}"], moments[f"v.{name}"] = m, v
    return new, moments


def start_sgd(parameters: Mapping[str, Tensor]) -> Tensors:
    """Zero velocity for `parameters`."""
    return prefixed("velocity", {name: torch.zeros_like(value) for name, value in parameters.items()})


def sgd(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rates: Mapping[str, float],
    momentum: float = 0.0,
    decay: float = 0.0,
) -> tuple[Tensors, Tensors]:
    """One SGD step with heavy-ball momentum and weight decay; returns new parameters and state (`velocity.name`)."""
    new, velocities = {}, {}
    for name, value in parameters.items():
        velocity = momentum * state[f"velocity.{name}"] + gradients[name] + decay * value
        new[name] = value - rates[name] * velocity
        velocities[f"velocity.{name}"] = velocity
    return new, velocities
