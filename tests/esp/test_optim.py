from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esp.optim import adam, below, prefixed, sgd, start_adam, start_sgd

RATES = {"codes": 0.1, "decoders.0.weight": 0.003}
SHAPES = {"codes": (3, 4), "decoders.0.weight": (2, 2, 3)}


def leaves() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def slopes(parameters: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """The gradient of a bumpy function, different at every step."""
    return {name: torch.cos(value + step) for name, value in parameters.items()}


def torch_groups(parameters: dict[str, Tensor]) -> list[dict[str, object]]:
    return [{"params": [value], "lr": RATES[name]} for name, value in parameters.items()]


def follow(optimiser: torch.optim.Optimizer, parameters: dict[str, Tensor], steps: int) -> None:
    for step in range(steps):
        for name, slope in slopes(parameters, step).items():
            parameters[name].grad = slope.detach()
        optimiser.step()


def test_adam_is_the_one_of_torch() -> None:
    theirs = {name: value.clone() for name, value in leaves().items()}
    follow(torch.optim.Adam(torch_groups(theirs)), theirs, 25)
    ours = leaves()
    state = start_adam(ours)
    for step in range(25):
        ours, state = adam(ours, slopes(ours, step), state, RATES, step)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.01)])
def test_sgd_is_the_one_of_torch(momentum: float, decay: float) -> None:
    theirs = {name: value.clone() for name, value in leaves().items()}
    follow(torch.optim.SGD(torch_groups(theirs), lr=1.0, momentum=momentum, weight_decay=decay), theirs, 25)
    ours = leaves()
    state = start_sgd(ours)
    for step in range(25):
        ours, state = sgd(ours, slopes(ours, step), state, RATES, momentum, decay)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12)


def test_a_step_changes_nothing_in_place() -> None:
    parameters = leaves()
    for state in (start_adam(parameters), start_sgd(parameters)):
        kept = {name: value.clone() for name, value in {**parameters, **state}.items()}
        if "m.codes" in state:
            adam(parameters, slopes(parameters, 0), state, RATES, 0)
        else:
            sgd(parameters, slopes(parameters, 0), state, RATES, 0.9, 0.1)
        for name, value in {**parameters, **state}.items():
            assert torch.equal(value, kept[name])


def test_prefixes_come_off_again_and_do_not_mix() -> None:
    tensors = leaves()
    mixed = {**prefixed("set", tensors), **prefixed("settings", tensors), "step": torch.tensor(1)}
    assert below("set", mixed).keys() == tensors.keys()
    assert below("set", mixed)["codes"] is tensors["codes"]
