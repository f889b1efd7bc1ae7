from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esp import augment
from esp.core import State, Task, condense, synthetic_parameters
from esp.errors import InputError, UnknownNameError
from esp.methods.mtt import MTT, Batch, tesla, unrolled
from esp.networks.flat import build as build_network
from esp.rng import Key
from esp.trajectory import Experts

ROWS = [[3, 1, 5], [0, 2, 4], [1, 2, 3, 4, 5, 0]]
OPERATIONS = augment.parse(augment.STRATEGY)


class Smooth(nn.Module):
    """Differentiable everywhere, so that finite differences are right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.avg_pool2d(torch.tanh(self.conv(x)), 4).flatten(1)
        return features, self.head(features)


def smooth(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Smooth()


Case = tuple[Task, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def make_case(make_task: Callable[..., Task]) -> Callable[..., Case]:
    """A task on a smooth or the usual network, and images, rate, start and target in float64."""

    def make(spec: str = f"{__name__}:smooth", **changes: Any) -> Case:
        network = build_network(spec, (3, 8, 8), 3)
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start, end = (network.init(Key(seed)).double() for seed in (1, 2))
        rate = torch.tensor(0.3, dtype=torch.float64)
        return make_task(network=network, **changes), images, rate, start, start + 0.3 * (end - start)

    return make


def batches(count: int, augmented: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    names = OPERATIONS if augmented else ()
    return [(torch.tensor(r), augment.draw_single(names, len(r), generator, shared=True)) for r in ROWS[:count]]


def straight(task: Task, images: Tensor, rate: Tensor, start: Tensor, target: Tensor, seen: list[Batch]) -> Tensor:
    """The loss, written with torch's own functions; differentiable."""
    theta = start if start.requires_grad else start.clone().requires_grad_()
    for rows, draw in seen:
        loss = F.cross_entropy(task.network(theta, augment.apply(draw, images[rows]))[1], task.labels[rows])
        theta = theta - rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
    return ((theta - target) ** 2).sum() / ((start.detach() - target) ** 2).sum()


@pytest.mark.parametrize("follow", [unrolled, tesla])
def test_a_student_that_takes_no_step_has_loss_one(make_case: Callable[..., Case], follow: Any) -> None:
    value, slope, rate_slope = follow(*make_case(), [])
    assert float(value) == 1
    assert not slope.any()
    assert not rate_slope.any()


@pytest.mark.parametrize("follow", [unrolled, tesla])
def test_a_student_that_arrives_has_loss_zero(make_case: Callable[..., Case], follow: Any) -> None:
    task, images, rate, start, _ = make_case()
    theta = start.clone().requires_grad_()
    for rows, draw in batches(3):
        loss = F.cross_entropy(task.network(theta, augment.apply(draw, images[rows]))[1], task.labels[rows])
        theta = (theta - rate * torch.autograd.grad(loss, theta)[0]).detach().requires_grad_()
    value, slope, _ = follow(task, images, rate, start, theta.detach(), batches(3))
    assert value < 1e-20
    assert slope.abs().max() < 1e-8


@pytest.mark.parametrize("augmented", [False, True])
def test_both_gradients_are_those_of_finite_differences(make_case: Callable[..., Case], augmented: bool) -> None:
    task, images, rate, start, target = make_case()
    seen, step = batches(3, augmented), 1e-5
    value, slope, rate_slope = unrolled(task, images, rate, start, target, seen)

    def loss(x: Tensor, a: Tensor) -> Tensor:
        return straight(task, x, a, start, target, seen).detach()

    torch.testing.assert_close(value, loss(images, rate), rtol=1e-12, atol=0)
    generator = torch.Generator().manual_seed(9)
    for _ in range(4):
        way = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        change = (loss(images + step * way, rate) - loss(images - step * way, rate)) / (2 * step)
        assert float((slope * way).sum()) == pytest.approx(float(change), rel=1e-6)
        assert abs(change) > 1e-4
    change = (loss(images, rate + step) - loss(images, rate - step)) / (2 * step)
    assert float(rate_slope) == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("follow", [unrolled, tesla])
def test_the_rate_rises_when_the_student_falls_short_and_falls_when_it_goes_too_far(
    make_case: Callable[..., Case], follow: Any
) -> None:
    task, images, _, start, _ = make_case()
    theta = start.clone().requires_grad_()
    rows, draw = batches(1)[0]
    loss = F.cross_entropy(task.network(theta, augment.apply(draw, images[rows]))[1], task.labels[rows])
    target = start - 0.1 * torch.autograd.grad(loss, theta)[0]
    for rate, sign in ((0.05, -1), (0.2, 1)):
        found = follow(task, images, torch.tensor(rate, dtype=torch.float64), start, target, batches(1))[2]
        assert found * sign > 0


@pytest.mark.parametrize("spec", [f"{__name__}:smooth", "convnet3,width=4"])
def test_tesla_is_exact_for_one_step_and_for_two_only_its_loss_is(make_case: Callable[..., Case], spec: str) -> None:
    case = make_case(spec, chunk=2)
    for exact, other in zip(unrolled(*case, batches(1)), tesla(*case, batches(1)), strict=True):
        torch.testing.assert_close(other, exact, rtol=1e-8, atol=1e-12)
    (loss, *slopes), (same, *others) = unrolled(*case, batches(2)), tesla(*case, batches(2))
    torch.testing.assert_close(same, loss, rtol=1e-10, atol=0)
    for one, two in zip(slopes, others, strict=True):
        assert (one - two).norm() > 1e-3 * one.norm()


def test_tesla_is_the_gradient_of_a_student_whose_weights_are_constants(make_case: Callable[..., Case]) -> None:
    task, images, rate, start, target = make_case("convnet3,width=4", chunk=4)
    images, rate = images.requires_grad_(), rate.requires_grad_()
    theta, total = start, torch.zeros_like(start)
    for rows, draw in batches(3):
        here = theta.detach().clone().requires_grad_()
        loss = F.cross_entropy(task.network(here, augment.apply(draw, images[rows]))[1], task.labels[rows])
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
        total = total + gradient
        theta = theta - rate.detach() * gradient.detach()
    # The rate's slope takes the sum of gradients for a constant, the images' slope the rate.
    value = ((start - rate.detach() * total - target) ** 2).sum() / ((start - target) ** 2).sum()
    (slope,) = torch.autograd.grad(value, images)
    far = ((start - rate * total.detach() - target) ** 2).sum() / ((start - target) ** 2).sum()
    found = tesla(task, images.detach(), rate.detach(), start, target, batches(3))
    torch.testing.assert_close(found[0], value.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found[1], slope, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found[2], torch.autograd.grad(far, rate)[0], rtol=1e-8, atol=0)


SMALL = MTT(steps=4, student_steps=3, segment=2, start_max=3)


def start_of(method: MTT, task: Task) -> State:
    state = next(condense(method, task, 3))[0]
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("stored", ["pixels", "multiformation", "latent"])
def test_a_step_reaches_the_stored_parameters_and_the_rate(make_task: Callable[..., Task], stored: str) -> None:
    task, method = make_task(stored), replace(SMALL, augmentation="none", start_max=0)
    assert task.experts is not None
    task = replace(task, experts=Experts(task.experts.trajectories[:1]))
    start = start_of(method, task)
    parameters = {name: value.clone().requires_grad_() for name, value in synthetic_parameters(start).items()}
    rate = start["learned.rate"].clone().requires_grad_()
    images = task.parametrisation.decode(parameters, 0, 3 * task.parametrisation.units)
    snapshots = experts_rows(task, 0)
    whole: list[Batch] = [(torch.arange(len(images)), ())] * 3
    loss = straight(task, images, rate, snapshots[0], snapshots[2], whole)
    *slopes, rate_slope = torch.autograd.grad(loss, [*parameters.values(), rate])
    state, metrics = next(condense(method, task, 3, start))
    torch.testing.assert_close(metrics["loss"], loss.detach(), rtol=1e-8, atol=0)
    for name, slope in zip(parameters, slopes, strict=True):
        found = state[f"optimiser.velocity.{name}"] if stored != "latent" else state[f"optimiser.m.{name}"] / 0.1
        assert (found - slope).norm() < 1e-6 * slope.norm(), name
    torch.testing.assert_close(state["optimiser.velocity.rate"], rate_slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(state["learned.rate"], (rate - method.lr_rate * rate_slope).detach(), rtol=1e-12, atol=0)


def experts_rows(task: Task, number: int) -> Tensor:
    assert task.experts is not None
    return task.experts.trajectories[number].segment(0, 5).double()


def test_the_rate_is_learned_with_momentum_outside_the_set(make_task: Callable[..., Task]) -> None:
    task, method = make_task(), replace(SMALL, lr_rate=1e-3, lr_pixels=0.0, rate=0.02)
    run = list(condense(method, task, 3))
    states = [state for state, _ in run]
    assert [set(synthetic_parameters(state)) for state in states] == [{"pixels"}] * 5
    assert float(states[0]["learned.rate"]) == pytest.approx(0.02)
    for before, after in pairwise(states):
        moved = after["learned.rate"] - before["learned.rate"]
        torch.testing.assert_close(moved, -1e-3 * after["optimiser.velocity.rate"], rtol=1e-3, atol=1e-9)
    clean = {**states[1], "optimiser.velocity.rate": torch.zeros(())}
    alone = next(condense(method, task, 3, clean))[0]["optimiser.velocity.rate"]
    expected = 0.5 * states[1]["optimiser.velocity.rate"] + alone
    torch.testing.assert_close(states[2]["optimiser.velocity.rate"], expected)
    assert [float(metrics["rate"]) for _, metrics in run[1:]] == [float(state["learned.rate"]) for state in states[1:]]


@pytest.mark.parametrize("gradient", ["unrolled", "tesla"])
def test_a_student_of_one_segment_comes_closer(make_task: Callable[..., Task], gradient: str) -> None:
    method = MTT(12, 3, 2, 0, augmentation="none", lr_pixels=20.0, rate=0.05, gradient=gradient)  # type: ignore[arg-type]
    task = make_task()
    assert task.experts is not None
    task = replace(task, experts=Experts(task.experts.trajectories[:1]))
    losses = [float(metrics["loss"]) for _, metrics in list(condense(method, task, 0))[1:]]
    assert losses[-1] < 0.9 * losses[0]


def test_experts_come_in_shuffled_rounds_and_start_epochs_at_random(make_task: Callable[..., Task]) -> None:
    task = make_task()
    rows = [experts_rows(task, number).float() for number in range(2)]
    drawn = []
    for done in range(40):
        first, last = SMALL._segment(task, done, Key(0))
        ((expert, start),) = [(e, t) for e in range(2) for t in range(6) if torch.equal(rows[e][t], first)]
        assert torch.equal(rows[expert][start + 2], last)
        drawn.append((expert, start))
    rounds = [tuple(expert for expert, _ in drawn[i : i + 2]) for i in range(0, 40, 2)]
    assert set(rounds) == {(0, 1), (1, 0)}
    assert {start for _, start in drawn} == {0, 1, 2, 3}


def test_a_students_batches_are_parts_of_permutations_with_one_operation_each(make_task: Callable[..., Task]) -> None:
    found = replace(SMALL, student_steps=5, batch=4)._batches(make_task(), Key(0))
    assert [len(rows) for rows, _ in found] == [4, 2, 4, 2, 4]
    for i in (0, 2):
        assert sorted([*found[i][0].tolist(), *found[i + 1][0].tolist()]) == list(range(6))
    for rows, (stage,) in found:
        assert len(stage.operation) == len(rows)
        assert len(set(stage.operation.tolist())) == 1
        assert len(set(stage.uniform[:, 0].tolist())) == len(rows)
    assert [len(rows) for rows, _ in replace(SMALL, batch=0)._batches(make_task(), Key(0))] == [6, 6, 6]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"augmentation": "blur"}, UnknownNameError, "unknown augmentation 'blur'"),
        ({"gradient": "exact"}, UnknownNameError, "unknown gradient 'exact'"),
        ({"start": "zeros"}, UnknownNameError, "unknown start 'zeros'"),
        ({"student_steps": 0}, InputError, "student_steps and segment of at least 1"),
        ({"segment": 0}, InputError, "student_steps and segment of at least 1"),
        ({"start_max": -1}, InputError, "start_max and batch that are not negative"),
        ({"batch": -1}, InputError, "start_max and batch that are not negative"),
        ({"start_max": 4}, InputError, "start_max=4 plus segment=2 is more than the 5 epochs"),
        ({"segment": 6}, InputError, "has 5 epochs, but segments of 6"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    make_task: Callable[..., Task], change: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        next(condense(replace(SMALL, **change), make_task(), 0))


def test_missing_experts_are_refused(make_task: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match="MTT needs expert trajectories"):
        next(condense(SMALL, make_task(experts=None), 0))
