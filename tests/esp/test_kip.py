from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from esp.core import Task, condense, synthetic_parameters
from esp.errors import DivergedError, InputError, UnknownNameError
from esp.kernels import ntk
from esp.methods.kip import KIP
from esp.rng import Key

TINY = KIP(steps=3)


def everything(task: Task) -> dict[str, Tensor]:
    """The whole training set as synthetic pixels, classes in order."""
    return {"pixels": task.images(task.data.train_labels.argsort(stable=True))}


def test_the_loss_vanishes_with_the_ridge_when_support_and_targets_are_the_same(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=8)
    parameters = everything(task)
    losses = [
        float(replace(TINY, ridge=ridge).loss(task, parameters, parameters["pixels"], task.labels)[0])
        for ridge in (1.0, 1e-2, 1e-4, 1e-8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1e-3
    assert losses[-1] < 1e-12


def test_a_huge_ridge_predicts_nothing(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=8)
    parameters = everything(task)
    loss, _ = replace(TINY, ridge=1e9).loss(task, parameters, parameters["pixels"], task.labels)
    variance = 0.5 * (1 / 3) * (2 / 3)  # of centred labels, half
    assert float(loss) == pytest.approx(variance, rel=1e-6)


def test_hand_solved_regression(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=1)
    support = task.parametrisation.init(Key(0), None)["pixels"]
    images, labels = task.real([0, 1, 2], 4, Key(1))
    rows, others = support.double().flatten(1), images.double().flatten(1)
    kernel = ntk(rows)
    y = torch.eye(3, dtype=torch.float64) - 1 / 3
    solved = torch.linalg.solve(kernel + 1e-6 * kernel.trace() / 3 * torch.eye(3), y)
    expected = 0.5 * (ntk(others, rows) @ solved - y[labels]).square().mean()
    for chunk in (512, 5):
        loss, _ = TINY.loss(make_task(ipc=1, chunk=chunk), {"pixels": support}, images, labels)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("stored", "chunk"), [("pixels", 512), ("pixels", 5), ("latent", 7), ("multiformation", 4)])
def test_slopes_are_those_of_finite_differences(make_task: Callable[..., Task], stored: str, chunk: int) -> None:
    task = make_task(stored, ipc=2, chunk=chunk)
    parameters = {name: value.double() for name, value in task.parametrisation.init(Key(0), None).items()}
    images, labels = task.real([0, 1, 2], 4, Key(1))
    method = replace(TINY, ridge=1e-2, depth=2)
    _, slopes = method.loss(task, parameters, images, labels)
    generator = torch.Generator().manual_seed(0)
    for name, value in parameters.items():
        direction, step = torch.randn(value.shape, generator=generator, dtype=torch.float64), 1e-5
        ahead, behind = (
            float(method.loss(task, {**parameters, name: value + sign * step * direction}, images, labels)[0])
            for sign in (1, -1)
        )
        assert float((slopes[name] * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(("depth", "width", "networks"), [(1, 40_000, 1), (2, 700, 12)])
def test_the_kernel_is_that_of_a_wide_network(depth: int, width: int, networks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x[3] = x[0] + 0.1
    sizes = [6, *[width] * depth, 1]
    total = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(networks):
        ws = [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairwise(sizes)]
        bs = [torch.randn(b, generator=generator, dtype=torch.float64) for b in sizes[1:]]
        leaves = [p.requires_grad_() for p in (*ws, *bs)]
        rows = []
        for one in x:
            h = one
            for layer, (w, b) in enumerate(zip(ws, bs, strict=True)):
                h = (2 / len(h)) ** 0.5 * w @ h + 0.1 * b
                h = h.relu() if layer < depth else h
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(h.sum(), leaves)]))
        jacobian = torch.stack(rows)
        total += jacobian @ jacobian.T / networks
    torch.testing.assert_close(ntk(x, depth=depth), total, rtol=0.06, atol=0.06)


def test_the_kernel_is_symmetric_positive_and_the_same_from_both_sides() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for depth in (1, 2, 3):
        kernel = ntk(x, depth=depth)
        torch.testing.assert_close(kernel, kernel.T)
        torch.testing.assert_close(kernel, ntk(x, x, depth))
        assert torch.linalg.eigvalsh(kernel).min() > 0
    assert ntk(x[:2], x).shape == (2, 6)
    torch.testing.assert_close(ntk(x[:2], x), ntk(x)[:2])


def test_images_that_are_equal_or_opposite_have_finite_slopes() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:1], -x[:1]]).requires_grad_()
    (slope,) = torch.autograd.grad(ntk(x, depth=2).sum(), x)
    assert slope.isfinite().all()


def test_it_learns_and_the_predictor_is_tested(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=1)
    run = list(condense(KIP(steps=40, start="noise"), task, 0))
    losses = [float(metrics["loss"]) for _, metrics in run[1:]]
    assert losses[-1] < 0.5 * losses[0]
    first, last = (TINY.accuracy(task, synthetic_parameters(state)) for state, _ in (run[0], run[-1]))
    assert last > max(first, 0.9)
    split = make_task(ipc=1, chunk=2)
    assert TINY.accuracy(split, synthetic_parameters(run[-1][0])) == last


def test_real_images_are_balanced_and_any_share_of_them_is_at_least_one(make_task: Callable[..., Task]) -> None:
    for targets in (1, 7, 10_000):
        *_, (_, metrics) = condense(replace(TINY, targets=targets), make_task(), 0)
        assert metrics["loss"].isfinite()


def test_a_kernel_without_a_factor_is_divergence(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=2)
    state = next(condense(TINY, task, 0))[0]
    twins = {**state, "set.pixels": torch.ones_like(state["set.pixels"])}
    with pytest.raises(DivergedError):
        list(condense(replace(TINY, ridge=0.0), task, 0, twins))


def test_what_makes_no_sense_is_refused(make_task: Callable[..., Task]) -> None:
    task = make_task()
    for change in ({"depth": 0}, {"targets": 0}, {"ridge": -1.0}):
        with pytest.raises(InputError, match="ridge that is not negative"):
            replace(TINY, **change).check(task)
    with pytest.raises(UnknownNameError, match="unknown start"):
        replace(TINY, start="zeros").check(task)  # type: ignore[arg-type]
