"""ESP without one of its losses: the same mathematics, and none of the work that the other loss needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from esp.core import Metrics, State, Task, condense
from esp.methods.dm import DM
from esp.methods.esp import ESP, proj_loss
from esp.rng import Key
from esp.subspace import span

SMALL: dict[str, Any] = {"steps": 3, "segment": 2, "restart": 2, "start_max": 2, "real_batch": 8, "lr_pixels": 0.05}


def run(task: Task, **options: Any) -> list[tuple[State, Metrics]]:
    return list(condense(ESP(**{**SMALL, **options}), task, 0))


class Convolved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the images that convolutions see, forward and on the way back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forward = self.back = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forward += len(args[0])
        if func is torch.ops.aten.convolution_backward.default:
            self.back += len(args[1])
        return func(*args, **(kwargs or {}))


def work(task: Task, **options: Any) -> Convolved:
    """Of the first step of ESP on six synthetic images; a pass over them through three blocks is 18."""
    steps = condense(ESP(**{**SMALL, **options}), task, 0)
    next(steps)
    counted = Convolved()
    with counted:
        next(steps)
    return counted


def test_without_dm_no_real_image_is_seen(make_task: Callable[..., Task]) -> None:
    both, proj = work(make_task(), beta=1.0), work(make_task(), beta=1.0, dm=0.0)
    assert both.forward - proj.forward == 3 * 3 * 8  # blocks, classes, real images
    assert both.back == proj.back
    runs = [run(make_task(), dm=0.0, beta=2.0, real_batch=count) for count in (1, 8)]
    for (one, _), (two, _) in zip(*runs, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_without_proj_there_is_one_pass_to_look_and_one_for_the_features(make_task: Callable[..., Task]) -> None:
    both, dm = work(make_task(), beta=1.0), work(make_task(), beta=0.0)
    assert dm.forward - 3 * 3 * 8 == 2 * 18
    assert dm.back == 2 * 18
    assert both.forward + both.back > dm.forward + dm.back + 18


@pytest.mark.parametrize("norm", ["l1", "l2", "l2sq", "relative"])
def test_the_slope_is_only_made_when_asked(norm: Any) -> None:
    space = span(torch.randn(3, 20, generator=Key(0).generator()))
    gradient = torch.randn(20, generator=Key(1).generator())
    residual = space.split(gradient)[1]
    value, slope = proj_loss(gradient, residual, space, norm)
    alone, nothing = proj_loss(gradient, residual, space, norm, slope=False)
    assert torch.equal(value, alone)
    assert nothing is None
    assert slope is not None
    leaf = gradient.clone().requires_grad_()
    outside = leaf - space.basis @ (space.basis.T @ leaf)
    length = torch.linalg.vector_norm(outside)
    written = {
        "l1": outside.abs().sum(), "l2": length, "l2sq": outside.square().sum(),
        "relative": length / torch.linalg.vector_norm(leaf),
    }[norm]  # fmt: skip
    (expected,) = torch.autograd.grad(written, leaf)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2", "l2sq", "relative"])
def test_a_gradient_inside_the_subspace_has_a_finite_slope(norm: Any) -> None:
    space = span(torch.eye(4)[:2])
    inside = torch.tensor([3.0, -1.0, 0.0, 0.0])
    for gradient in (inside, torch.zeros(4)):
        value, slope = proj_loss(gradient, space.split(gradient)[1], space, norm)
        assert value == pytest.approx(0, abs=1e-6)
        assert slope is not None
        assert slope.isfinite().all()


def test_dm_alone_is_dm_at_the_students_weights(make_task: Callable[..., Task]) -> None:
    """Its loss is that of DM, over the classes' mean, at the first snapshot of a segment."""
    task = make_task(ipc=2)
    (state, _), (_, metrics), *_ = run(task, beta=0.0, augmentation="none")
    key = Key(0).fold("condense")
    first, _ = ESP(**SMALL)._segment(task, key.fold("segment", 0))
    view_of = DM(augmentation="none", real_batch=8)
    from esp.methods._matching import View

    view = View(task, {"pixels": state["set.pixels"]}, ())
    loss, _ = view_of._match(view, first, [0, 1, 2], key.fold("step", 0, "real"))
    torch.testing.assert_close(metrics["dm"], loss / 3, rtol=1e-4, atol=1e-6)
