from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esp import augment
from esp.core import State, Task, condense, synthetic_parameters
from esp.data.dataset import Dataset
from esp.errors import InputError, UnknownNameError
from esp.methods._matching import View
from esp.methods.dc import DC, DSA, distance
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.optim import Tensors
from esp.presets import LOOPS, loops
from esp.rng import Key

KEY = Key(3).fold("condense")
EVERYTHING = 100  # all real images of a class, so that their choice does not matter


@dataclass(frozen=True)
class DoubleData(Dataset):
    """The same images in float64, so that derivatives can be compared to the last digits."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


@pytest.fixture
def double_task(data: Dataset, make_task: Callable[..., Task]) -> Callable[..., Task]:
    return lambda stored="pixels", **changes: make_task(stored, data=DoubleData(**vars(data)), **changes)


@pytest.fixture(scope="module")
def convnet() -> Network:
    return build_network("convnet3", (3, 32, 32), 10)


def one_dimensional(network: Network) -> Tensor:
    """bool [p]: which weights are biases, scales or shifts."""
    return torch.cat(
        [torch.full((p.numel(),), p.ndim == 1) for p in network.tensors(torch.zeros(network.parameters)).values()]
    )


def vectors(network: Network, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, network.parameters, generator=generator, dtype=torch.float64))


def test_orthogonal_gradients_are_as_far_apart_as_there_are_rows(convnet: Network) -> None:
    one, _ = vectors(convnet)
    odd = torch.arange(len(one)) % 2 == 1
    found, _ = distance(convnet, one * odd, one * ~odd)
    assert float(found) == 3 * 128 + 10 == 394
    assert float(distance(convnet, one, -one)[0]) == pytest.approx(788, rel=1e-5)


def test_the_distance_of_equal_gradients_is_zero_at_any_scale_and_whatever_the_biases(convnet: Network) -> None:
    one, two = vectors(convnet)
    assert float(distance(convnet, one, one)[0]) == pytest.approx(0, abs=1e-4)  # 1e-6 below the line of each row
    apart, slope = distance(convnet, one, two)
    for a, b in ((5, 1), (1, 0.2), (3, 7)):
        assert float(distance(convnet, a * one, b * two)[0]) == pytest.approx(float(apart), rel=1e-6)
    biases = one_dimensional(convnet)
    other = torch.where(biases, 100 * two, one)
    assert torch.equal(distance(convnet, other, two)[0], apart)
    assert not slope[biases].any()
    assert slope[~biases].all()


def test_the_slope_of_the_distance_is_its_derivative(network: Network) -> None:
    one, two, direction = vectors(network, 3)
    slope = distance(network, one, two)[1]
    ahead, behind = (distance(network, one + step * direction, two)[0] for step in (1e-5, -1e-5))
    assert float(slope @ direction) == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-7)


def test_rows_without_a_gradient_are_finite(network: Network) -> None:
    one, _ = vectors(network)
    for a, b in ((one, 0 * one), (0 * one, one), (0 * one, 0 * one)):
        value, slope = distance(network, a, b)
        assert float(value) == 3 * 4 + 3
        assert slope.isfinite().all()


def first_weights(task: Task) -> Tensor:
    return task.network.init(KEY.fold("network", 0)).double()


def straight_distance(task: Task, method: DC, parameters: Tensors) -> Tensor:
    """The objective of the first step as the paper writes it, with one graph through the backward pass."""
    weights = {name: w.clone().requires_grad_() for name, w in task.network.tensors(first_weights(task)).items()}
    # The only knowledge of how the library names its streams: the draw of the first step.
    names = augment.parse(method.augmentation, task.data.flips)
    draw = augment.draw_single(names, task.data.num_classes, KEY.fold("step", 0, "augment").generator())
    images = augment.apply(
        draw,
        task.parametrisation.decode(parameters, 0, task.parametrisation.units * task.data.num_classes),
        task.labels,
    )

    def slopes(x: Tensor, label: int) -> tuple[Tensor, ...]:
        theta = torch.cat([w.reshape(-1) for w in weights.values()])
        loss = F.cross_entropy(task.network(theta, x)[1], torch.full((len(x),), label))
        return torch.autograd.grad(loss, list(weights.values()), create_graph=True)

    total = torch.zeros((), dtype=torch.float64)
    for label in range(task.data.num_classes):
        real = task.data.normalise(task.data.train_images[task.data.train_labels == label])
        wanted = slopes(augment.apply(draw, real, torch.full((len(real),), label)), label)
        for w, g in zip(wanted, slopes(images[task.labels == label], label), strict=True):
            if w.ndim > 1:
                for a, b in zip(w.detach(), g, strict=True):
                    total = total + 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)
    return total


def double(state: State) -> State:
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("stored", ["pixels", "multiformation", "latent"])
@pytest.mark.parametrize("method", [DC(real_batch=EVERYTHING), DSA(real_batch=EVERYTHING)], ids=["dc", "dsa"])
def test_the_gradient_is_the_one_of_double_backward(double_task: Callable[..., Task], method: DC, stored: str) -> None:
    task = double_task(stored)
    start = double(next(condense(method, task, 3))[0])
    parameters = {name: value.clone().requires_grad_() for name, value in synthetic_parameters(start).items()}
    expected = straight_distance(task, method, parameters)
    slopes = torch.autograd.grad(expected, list(parameters.values()))
    state, metrics = next(condense(method, task, 3, start))
    torch.testing.assert_close(metrics["distance"], expected.detach(), rtol=1e-9, atol=0)
    for name, slope in zip(parameters, slopes, strict=True):
        # The first velocity is the gradient, the first moment of Adam a tenth of it.
        found = state[f"optimiser.velocity.{name}"] if stored != "latent" else state[f"optimiser.m.{name}"] / 0.1
        assert (found - slope).norm() < 1e-6 * slope.norm(), name
        assert slope.norm() > 1e-3


@pytest.mark.parametrize("chunk", [7, 40])
def test_chunks_give_what_the_whole_gives(double_task: Callable[..., Task], chunk: int) -> None:
    method = DSA(steps=2, real_batch=EVERYTHING, outer=2, inner=1)
    whole, parts = (
        list(condense(method, task, 3, double(next(condense(method, task, 3))[0])))[-1][0]
        for task in (double_task("latent"), double_task("latent", chunk=chunk))
    )
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunks_by_class_hold_one_class_each(make_task: Callable[..., Task], chunk: int) -> None:
    task = make_task("latent", chunk=chunk)
    view = View(task, {}, (), by_class=True)
    seen = []
    for label in range(3):
        for units, rows in view.chunks(label):
            assert set(task.labels[rows].tolist()) == {label}
            assert rows.stop - rows.start <= max(chunk, 2)
            assert (rows.start, rows.stop) == (2 * units.start, 2 * units.stop)
            seen.append((units, rows))
    assert seen == list(view.chunks())
    assert [row for _, rows in seen for row in range(rows.start, rows.stop)] == list(range(len(task.labels)))


def test_the_network_is_trained_between_updates_and_replaced_after_the_last(make_task: Callable[..., Task]) -> None:
    task, method = make_task(), DC(steps=5, outer=2, inner=3, real_batch=4, lr_network=0.05)
    run = [state for state, _ in condense(method, task, 3)]
    for first, number in ((1, 0), (3, 1), (5, 2)):
        theta = task.network.init(KEY.fold("network", number)).requires_grad_()
        for _ in range(3):
            loss = F.cross_entropy(task.network(theta, run[first]["set.pixels"])[1], task.labels)
            theta = (theta - 0.05 * torch.autograd.grad(loss, theta)[0]).detach().requires_grad_()
        torch.testing.assert_close(run[first]["network"], theta.detach(), rtol=1e-5, atol=1e-6)
        if first < 5:
            assert torch.equal(run[first + 1]["network"], run[first]["network"])


def test_the_velocity_outlives_the_networks(make_task: Callable[..., Task]) -> None:
    task, method = make_task(), DC(steps=2, outer=1, real_batch=4, lr_pixels=0.3)
    start, first, second = (state for state, _ in condense(method, task, 3))
    name = "optimiser.velocity.pixels"
    ((alone, _),) = condense(method, task, 3, {**first, name: torch.zeros_like(first[name])})
    torch.testing.assert_close(second[name], 0.5 * first[name] + alone[name])
    torch.testing.assert_close(first["set.pixels"], start["set.pixels"] - 0.3 * first[name])


def test_the_loops_are_the_papers_and_between_them_on_a_line() -> None:
    assert {ipc: loops(ipc) for ipc in LOOPS} == LOOPS
    assert [LOOPS[ipc] for ipc in (1, 10, 50)] == [(1, 1), (10, 50), (50, 10)]
    assert loops(25) == (25, 22)
    assert loops(1000) == loops(100)
    assert [loops(ipc)[0] for ipc in range(1, 51)] == list(range(1, 51))
    assert all(loops(ipc)[1] >= 1 for ipc in range(1, 120))


def test_dc_starts_from_noise_and_dsa_from_real_images_where_it_can(make_task: Callable[..., Task]) -> None:
    task = make_task()
    real = task.data.normalise(task.data.train_images).flatten(1)
    noise, images = (next(condense(m, task, 0))[0]["set.pixels"].flatten(1) for m in (DC(), DSA()))
    assert torch.cdist(noise, real).min() > 1
    assert torch.cdist(images, real).min(1).values.max() < 1e-3
    assert "set.codes" in next(condense(DSA(), make_task("latent"), 0))[0]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"augmentation": "blur"}, UnknownNameError, "unknown augmentation 'blur'"),
        ({"start": "zeros"}, UnknownNameError, "unknown start 'zeros'"),
        ({"real_batch": 0}, InputError, "DC needs a real_batch of at least 1"),
        ({"outer": -1}, InputError, "loops that are not negative"),
        ({"inner": -1}, InputError, "loops that are not negative"),
        ({"batch": 0}, InputError, "batch and lr above zero"),
        ({"lr_network": 0.0}, InputError, "batch and lr above zero"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    make_task: Callable[..., Task], change: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        next(condense(replace(DC(), **change), make_task(), 0))  # type: ignore[arg-type]
