from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esp.core import Task, condense
from esp.errors import InputError
from esp.methods.esp import ESP
from esp.subspace import Subspace, span

seeds, lengths, counts = st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 8)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_orthonormal(space: Subspace, error: float = 1e-12) -> None:
    eye = torch.eye(space.basis.shape[1], dtype=space.basis.dtype)
    assert (space.basis.T @ space.basis - eye).abs().max() < error


@given(seeds, lengths, counts)
def test_the_basis_is_orthonormal_and_spans_every_snapshot(seed: int, p: int, count: int) -> None:
    snapshots = normal(seed, count, p)
    space = span(snapshots)
    assert space.basis.shape == (p, min(p, count))
    assert_orthonormal(space)
    for snapshot in snapshots:
        assert space.outside(snapshot).norm() < 1e-10 * snapshot.norm()
        torch.testing.assert_close(space.point(space.coordinates(snapshot)), snapshot, rtol=1e-9, atol=1e-9)


@given(seeds, lengths, counts)
def test_projection_is_idempotent_and_the_residual_orthogonal(seed: int, p: int, count: int) -> None:
    space, vector = span(normal(seed, count, p)), normal(seed + 1, p)
    inside, residual = space.split(vector)
    projected = space.point(inside)
    torch.testing.assert_close(projected + residual, vector, rtol=1e-12, atol=1e-12)
    assert space.coordinates(residual).abs().max() < 1e-12
    again, nothing = space.split(projected)
    torch.testing.assert_close(again, inside, rtol=1e-10, atol=1e-12)
    assert nothing.norm() < 1e-12 * (1 + projected.norm())
    # Of all points of the subspace the projection is the nearest.
    other = space.point(inside + 0.1 * normal(seed + 2, len(inside)))
    assert (vector - projected).norm() <= (vector - other).norm()


@given(seeds, st.integers(1, 4), st.integers(0, 4))
def test_dependent_snapshots_add_nothing(seed: int, free: int, dependent: int) -> None:
    basis = normal(seed, free, 30)
    mixed = torch.cat([basis, normal(seed + 1, dependent, free) @ basis, basis[-1:], basis[:1]])
    shuffled = mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(seed))]
    space = span(shuffled)
    assert space.basis.shape[1] == free
    assert_orthonormal(space)


def test_a_direction_almost_inside_gives_an_orthonormal_column() -> None:
    start, other = normal(0, 2, 500)
    space = span(torch.stack([start, start + other, 3 * start - other + 1e-5 * normal(1, 500)]))
    assert space.basis.shape[1] == 3
    assert_orthonormal(space, 1e-14)


def test_a_hand_solved_case() -> None:
    space = span(torch.tensor([[0.0, 2, 0, 0], [0, 2, 3, 0]]))
    inside, residual = space.split(torch.tensor([1.0, 5, -7, 2]))
    assert residual.tolist() == [1, 0, 0, 2]
    assert space.point(inside).tolist() == [0, 5, -7, 0]


def test_nearly_parallel_snapshots_keep_an_orthonormal_basis() -> None:
    start, steps = normal(0, 5000), normal(1, 10, 5000)
    snapshots = (start + 1e-4 * steps.cumsum(0)).float()
    space = span(snapshots)
    assert space.basis.dtype == torch.float32
    assert space.basis.shape == (5000, 10)
    assert_orthonormal(space, 1e-6)
    difference = snapshots[7] - snapshots[6]
    assert space.outside(difference).norm() < 1e-5 * difference.norm()


def test_the_residual_of_a_gradient_inside_is_orthogonal_in_single_precision() -> None:
    space = span(normal(3, 6, 4000).float())
    gradient = space.point(1e3 * torch.ones(6)) + 1e-2 * normal(4, 4000).float()
    residual = space.split(gradient)[1]
    assert space.coordinates(residual).norm() < 2e-5 * residual.norm()


@pytest.mark.parametrize("snapshots", [torch.zeros(3, 5), torch.full((2, 4), float("nan"))])
def test_a_segment_that_spans_nothing_is_refused(snapshots: Tensor) -> None:
    with pytest.raises(InputError, match="spans nothing"):
        span(snapshots)


@pytest.mark.parametrize("stored", ["pixels", "latent"])
def test_the_student_walks_inside_the_span_by_the_projected_gradient(
    make_task: Callable[..., Task], stored: str
) -> None:
    """A student in weight space (eq. 4 to 6) goes where the library's goes in coordinates, restarts included."""
    method = ESP(
        steps=7, segment=3, restart=3, start_min=1, start_max=1, real_batch=4, augmentation="none", lr_network=0.5
    )
    task = make_task(stored)
    assert task.experts is not None
    task = make_task(stored, experts=type(task.experts)(task.experts.trajectories[:1]))
    snapshots = task.experts.trajectories[0].segment(1, 3)  # type: ignore[union-attr]
    space = span(snapshots)
    hot = torch.nn.functional.one_hot(task.labels, 3).float()
    units = 3 * task.parametrisation.units
    theta = snapshots[0]
    states = [{name: value.clone() for name, value in state.items()} for state, _ in condense(method, task, 0)]
    for before, after in pairwise(states):
        theta = snapshots[0] if int(before["step"]) % 3 == 0 else theta
        parameters = {name[4:]: value for name, value in before.items() if name.startswith("set.")}
        leaf = theta.clone().requires_grad_()
        logits = task.network(leaf, task.parametrisation.decode(parameters, 0, units))[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, hot, reduction="sum") / len(hot)
        gradient = torch.autograd.grad(loss, leaf)[0]
        theta = theta - 0.5 * space.basis @ (space.basis.T @ gradient)
        assert space.outside(theta).norm() < 1e-5 * theta.norm()
        walked = space.point(after["student"])
        assert (walked - theta).norm() < 1e-4 * (theta - snapshots[0]).norm() + 1e-6
        assert (theta - snapshots[0]).norm() > 1e-3


def test_a_plain_student_leaves_the_span(make_task: Callable[..., Task]) -> None:
    method = ESP(steps=3, segment=2, restart=5, start_min=0, start_max=0, real_batch=4, inner_step="plain")
    task = make_task()
    student = list(condense(method, task, 0))[-1][0]["student"]
    assert len(student) == task.network.parameters
    assert task.experts is not None
    outside = min(
        float(span(expert.segment(0, 2)).outside(student).norm() / student.norm())
        for expert in task.experts.trajectories
    )
    assert outside > 1e-3
