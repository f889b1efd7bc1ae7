"""KIP beyond fixed labels and the exact kernel: learned rows, label solve, random convolutional features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esp import condensed
from esp.core import Task, condense, learned, synthetic_parameters
from esp.errors import InputError, UnknownNameError
from esp.kernels import ntk, random_features
from esp.methods.kip import KIP, one_hot
from esp.rng import Key

CPU = torch.device("cpu")
CONV = KIP(steps=2, kernel="conv", conv_depth=2, conv_width=4, conv_networks=2, targets=12)


def everything(task: Task) -> dict[str, Tensor]:
    """The whole training set as synthetic pixels, classes in order."""
    return {"pixels": task.images(task.data.train_labels.argsort(stable=True))}


def last(method: KIP, task: Task, seed: int = 0) -> dict[str, Tensor]:
    *_, (state, _) = condense(method, task, seed)
    return state


def direct_solution(task: Task, support: Tensor, method: KIP) -> Tensor:
    """Least squares of (K_ts K_reg^-1) y = y_t over all training images, by torch's solver, rows less their mean."""
    rows, images = (x.flatten(1).double() for x in (support, task.images(torch.arange(len(task.data.train_labels)))))
    kernel = ntk(rows, depth=method.depth)
    kernel = kernel + method.ridge * kernel.diagonal().mean() * torch.eye(len(kernel))
    shares = torch.linalg.solve(kernel, ntk(rows, images, method.depth)).T
    solution: Tensor = torch.linalg.lstsq(shares, one_hot(task, task.data.train_labels) - 1 / 3).solution
    return solution


@pytest.mark.parametrize("chunk", [512, 5])
def test_solved_labels_are_those_of_a_direct_solve(make_task: Callable[..., Task], chunk: int) -> None:
    method = KIP(steps=1, labels="solved", ridge=1e-3, targets=24)  # 24: every training image
    task = make_task(ipc=2, chunk=chunk)
    state = last(method, task)
    expected = direct_solution(task, synthetic_parameters(state)["pixels"], method) + 1 / 3
    torch.testing.assert_close(state["learned.labels"].double(), expected, atol=1e-5, rtol=1e-4)


def test_solving_goes_on_over_steps_and_leaves_the_images_alone(make_task: Callable[..., Task]) -> None:
    method = KIP(steps=6, labels="solved", ridge=1e-3, targets=12)
    task = make_task(ipc=2)
    run = list(condense(method, task, 0))
    assert torch.equal(run[0][0]["set.pixels"], run[-1][0]["set.pixels"])
    exact = direct_solution(task, run[0][0]["set.pixels"], method) + 1 / 3
    errors = [float((state["learned.labels"] - exact).norm()) for state, _ in run[1:]]
    assert errors[-1] < 0.7 * errors[0]


def test_solved_labels_predict_better_than_fixed_ones(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=1)
    state = last(KIP(steps=1, labels="solved", ridge=1e-3, targets=24), task)
    images, classes = task.images(torch.arange(24)), task.data.train_labels
    method = KIP(ridge=1e-3)
    fixed, _ = method.loss(task, synthetic_parameters(state), images, classes)
    solved, _ = method.loss(task, synthetic_parameters(state), images, classes, state["learned.labels"])
    assert solved < fixed


def test_learned_labels_move_and_lower_the_loss_further(make_task: Callable[..., Task]) -> None:
    task, method = make_task(ipc=1), KIP(steps=30, start="noise", ridge=1e-3)
    fixed = [float(m["loss"]) for _, m in list(condense(method, task, 0))[1:]]
    run = list(condense(replace(method, labels="learned"), task, 0))
    assert not learned(run[-1][0])["labels"].equal(learned(run[0][0])["labels"])
    assert sum(float(m["loss"]) for _, m in run[-5:]) < sum(fixed[-5:])
    assert "learned.labels" not in last(replace(method, steps=1), task)


@pytest.mark.parametrize("method", [KIP(ridge=1e-2, depth=2), CONV], ids=["fc", "conv"])
@pytest.mark.parametrize(("stored", "chunk"), [("pixels", 512), ("pixels", 5), ("latent", 7)])
def test_slopes_are_those_of_finite_differences(
    make_task: Callable[..., Task], method: KIP, stored: str, chunk: int
) -> None:
    task = make_task(stored, ipc=2, chunk=chunk)
    parameters = {name: value.double() for name, value in task.parametrisation.init(Key(0), None).items()}
    generator = torch.Generator().manual_seed(0)
    rows = one_hot(task, task.labels) + 0.1 * torch.randn(len(task.labels), 3, generator=generator).double()
    images, labels = task.real([0, 1, 2], 4, Key(1))
    if method.kernel == "conv":  # random networks are float32; float64 ones let a small step be told from rounding
        images = images.double()
        made = method._regression

        def double(task: Task, key: Key) -> object:
            found = made(task, key)
            assert found.features is not None
            thetas = tuple(theta.double() for theta in found.features.thetas)
            return replace(found, features=replace(found.features, thetas=thetas))

        object.__setattr__(method, "_regression", double)
    try:
        _, slopes = method.loss(task, parameters, images, labels, rows, Key(3))

        def value(parameters: dict[str, Tensor], rows: Tensor) -> float:
            return float(method.loss(task, parameters, images, labels, rows, Key(3))[0])

        for name, tensor in {**parameters, "labels": rows}.items():
            direction, step = torch.randn(tensor.shape, generator=generator, dtype=torch.float64), 1e-6
            found = [
                value(parameters, moved) if name == "labels" else value({**parameters, name: moved}, rows)
                for moved in (tensor + step * direction, tensor - step * direction)
            ]
            assert float((slopes[name] * direction).sum()) == pytest.approx(
                (found[0] - found[1]) / (2 * step), rel=1e-3
            )
    finally:
        method.__dict__.pop("_regression", None)


def analytic(x: Tensor, y: Tensor) -> float:
    """NNGP of one block: convolution, ReLU, average pooling, linear layer; weight variance 2, bias variance 0.01."""
    patches = [F.unfold(image[None], 3, padding=1)[0].T for image in (x, y)]  # [pixels, c * 9]
    own = [2 * (p * p).mean(1) + 0.01 for p in patches]
    across = 2 * patches[0] @ patches[1].T / patches[0].shape[1] + 0.01
    scale = (own[0][:, None] * own[1]).sqrt()
    angle = (across / scale).clamp(-1, 1).arccos()
    products = scale * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    side = x.shape[1]
    blocks = products.reshape(side // 2, 2, side // 2, 2, side // 2, 2, side // 2, 2).mean((1, 3, 5, 7))
    pooled = blocks.flatten(0, 1).flatten(1)
    return float(2 * pooled.diagonal().mean() + 0.01)


def test_random_features_approach_the_kernel_of_one_layer() -> None:
    images = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    images[2] = images[0] + 0.1 * images[1]
    exact = torch.tensor([[analytic(x, y) for y in images.double()] for x in images.double()], dtype=torch.float64)
    errors = []
    for networks in (2, 200):
        found = random_features((2, 8, 8), 1, 64, networks, Key(0), CPU, 2, False).kernel(images, images)
        errors.append(float(((found - exact) / exact).abs().max()))
    assert errors[1] < 0.02  # 200 networks of 64 channels: 1 / sqrt(12,800) is 0.9 %
    assert errors[1] < errors[0]


def test_random_features_are_the_same_in_chunks_and_differ_between_keys() -> None:
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = (random_features((1, 8, 8), 2, 4, 3, Key(0), CPU, chunk, False) for chunk in (512, 2))
    torch.testing.assert_close(whole.kernel(images, images), parts.kernel(images, images))
    other = random_features((1, 8, 8), 2, 4, 3, Key(1), CPU, 512, False)
    assert not torch.allclose(whole.kernel(images, images), other.kernel(images, images))
    kernel = whole.kernel(images, images)
    torch.testing.assert_close(kernel, kernel.T)
    assert torch.linalg.eigvalsh(kernel).min() > -1e-9


def test_the_convolutional_kernel_learns_and_its_predictor_is_tested(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=1)
    method = replace(CONV, steps=40, start="noise", lr_pixels=0.1)
    run = list(condense(method, task, 0))
    losses = [float(metrics["loss"]) for _, metrics in run[1:]]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert method.accuracy(task, synthetic_parameters(run[-1][0])) > 0.8


def test_label_rows_travel_with_the_set_and_are_counted(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task(ipc=1)
    state = last(KIP(steps=2, labels="learned"), task)
    path = tmp_path / "synthetic.safetensors"
    condensed.save(path, "pixels", task.parametrisation, synthetic_parameters(state), task.data, {}, learned(state))
    found = condensed.load(path)
    assert found.meta["stored_numbers"] == task.parametrisation.stored + 3 * 3
    assert torch.equal(found.targets(), state["learned.labels"])
    assert torch.equal(found.labels(), task.labels)
    assert set(found.parameters) == {"pixels"}
    assert found.rate is None


def test_sets_of_hard_labels_have_classes_for_targets(make_task: Callable[..., Task], tmp_path: Path) -> None:
    task = make_task(ipc=1)
    state = last(KIP(steps=1), task)
    condensed.save(tmp_path / "a", "pixels", task.parametrisation, synthetic_parameters(state), task.data, {})
    found = condensed.load(tmp_path / "a")
    assert found.soft is None
    assert found.targets().tolist() == [0, 1, 2]
    assert found.meta["stored_numbers"] == task.parametrisation.stored


def test_what_makes_no_sense_is_refused(make_task: Callable[..., Task]) -> None:
    task = make_task()
    for change in ({"conv_ridge": -1.0}, {"conv_networks": 0}):
        with pytest.raises(InputError):
            replace(CONV, **change).check(task)
    with pytest.raises(InputError, match="too small for 4 poolings"):
        replace(CONV, conv_depth=4).check(task)
    with pytest.raises(UnknownNameError, match="unknown kernel"):
        replace(CONV, kernel="rbf").check(task)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown labels"):
        replace(CONV, labels="hard").check(task)  # type: ignore[arg-type]
