from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from esp import augment
from esp.core import State, Task, condense
from esp.data.dataset import Dataset
from esp.derivatives import LOSSES, Derivatives, loss_slope, loss_sum
from esp.errors import InputError
from esp.methods.esp import ESP, ProjNorm
from esp.networks.flat import Network, build
from esp.optim import Tensors
from esp.rng import Key
from esp.subspace import Subspace, span
from esp.trajectory import Experts
from espctl.services import profile

STEPS = 7


@dataclass(frozen=True)
class DoubleData(Dataset):
    """The same images in float64, so that derivatives can be compared to the last digits."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


@dataclass(frozen=True)
class DoubleExperts(Experts):
    """The same snapshots in float64."""

    def segment(self, expert: int, start: int, length: int, device: torch.device) -> tuple[Tensor, Subspace]:
        snapshots = self.trajectories[expert].segment(start, length).double()
        return snapshots[0], span(snapshots)


@pytest.fixture
def double_task(data: Dataset, experts: Experts, make_task: Callable[..., Task]) -> Callable[..., Task]:
    return lambda stored, **changes: make_task(
        stored, data=DoubleData(**vars(data)), experts=DoubleExperts(experts.trajectories[:1]), **changes
    )


@pytest.fixture
def batch(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """theta [p], images [6, 3, 8, 8] and targets [6, 3], in float64."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    targets = F.one_hot(torch.tensor([0, 1, 2, 2, 1, 0]), 3).double()
    return network.init(Key(4)).double(), images, targets


def reference_loss(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Mean over samples, by torch's own functions."""
    if loss == "ce":
        return F.cross_entropy(logits, labels)
    hot = F.one_hot(labels, logits.shape[1]).to(logits)
    if loss == "mse":
        return 0.5 * F.mse_loss(logits, hot - hot.mean(1, keepdim=True))
    return F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1).mean()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_one_of_torch_and_its_slope_is_its_derivative(loss: str) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, 2])
    targets = F.one_hot(labels, 3).double()
    total = loss_sum(logits, targets, loss)
    torch.testing.assert_close(total, 5 * reference_loss(logits, labels, loss), rtol=1e-12, atol=0)
    slope = torch.autograd.grad(total, logits)[0]
    torch.testing.assert_close(loss_slope(logits, targets, loss), slope, rtol=1e-12, atol=1e-14)


def test_an_unknown_loss_is_refused(network: Network) -> None:
    with pytest.raises(InputError, match="unknown loss 'hinge'"):
        Derivatives(network, "hinge")


@pytest.mark.parametrize("loss", LOSSES)
def test_parameter_gradient_is_the_one_of_autograd(
    network: Network, batch: tuple[Tensor, Tensor, Tensor], loss: str
) -> None:
    theta, images, targets = batch
    leaf = theta.clone().requires_grad_()
    features, logits = network(leaf, images)
    expected = 6 * reference_loss(logits, targets.argmax(1), loss)
    gradient, found_features, found = Derivatives(network, loss).parameter_gradient(theta, images, targets)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found_features, features.detach(), rtol=1e-10, atol=1e-10)
    assert not gradient.requires_grad
    assert not found_features.requires_grad


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_pullback_is_double_backward(network: Network, batch: tuple[Tensor, Tensor, Tensor], loss: str) -> None:
    theta, images, targets = batch
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(len(theta), generator=generator, dtype=torch.float64)
    weights = torch.randn(6, network.features, generator=generator, dtype=torch.float64)
    leaf, pixels = theta.clone().requires_grad_(), images.clone().requires_grad_()
    features, logits = network(leaf, pixels)
    total = 6 * reference_loss(logits, targets.argmax(1), loss)
    (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
    (expected,) = torch.autograd.grad(gradient @ direction + (features * weights).sum(), pixels)
    derivatives = Derivatives(network, loss)
    found = derivatives.mixed_pullback(theta, direction, images, targets, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Without a direction it is the pullback of the features alone, and linear in both.
    plain = derivatives.feature_pullback(theta, images, weights)
    (along,) = torch.autograd.grad((network(theta, pixels)[0] * weights).sum(), pixels)
    torch.testing.assert_close(plain, along, rtol=1e-10, atol=1e-10)
    still = derivatives.mixed_pullback(theta, 0 * direction, images, targets, weights)
    torch.testing.assert_close(still, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_derivatives_are_differences_of_gradients(
    network: Network, batch: tuple[Tensor, Tensor, Tensor], loss: str
) -> None:
    theta, images, targets = batch
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(len(theta), generator=generator, dtype=torch.float64)
    weights = torch.randn(6, network.features, generator=generator, dtype=torch.float64)
    move, turn = 1e-5 * torch.randn(images.shape, generator=generator, dtype=torch.float64), 1e-5 * direction.flip(0)
    derivatives = Derivatives(network, loss)

    def value(theta: Tensor, images: Tensor, weigh: float) -> Tensor:
        gradient, features, _ = derivatives.parameter_gradient(theta, images, targets)
        return gradient @ direction + weigh * (features * weights).sum()

    found = (derivatives.mixed_pullback(theta, direction, images, targets, weights) * move).sum()
    expected = (value(theta, images + move, 1) - value(theta, images - move, 1)) / 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    along, on_theta, on_images = derivatives.adjoint(theta, direction, images, targets)
    torch.testing.assert_close(along, value(theta, images, 0), rtol=1e-10, atol=0)
    expected = (value(theta, images + move, 0) - value(theta, images - move, 0)) / 2
    torch.testing.assert_close((on_images * move).sum(), expected, rtol=1e-6, atol=0)
    expected = (value(theta + turn, images, 0) - value(theta - turn, images, 0)) / 2
    torch.testing.assert_close(on_theta @ turn, expected, rtol=1e-6, atol=0)


def start(task: Task, method: ESP) -> State:
    """The state before the first step, in float64."""
    state = next(condense(method, task, seed=3))[0]
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def first_gradient(task: Task, method: ESP) -> tuple[Tensors, State]:
    """What the library hands to Adam in the first step: its first moment is a tenth of it."""
    state, _ = next(condense(method, task, seed=3, state=start(task, method)))
    prefix = "optimiser.m."
    return {name[len(prefix) :]: value / 0.1 for name, value in state.items() if name.startswith(prefix)}, state


def straight_objective(task: Task, method: ESP, parameters: Tensors) -> Tensor:
    """L_DM + beta L_Proj as the paper writes it, with one graph through the backward pass."""
    assert task.experts is not None
    snapshots = task.experts.trajectories[0].segment(method.start_min, method.segment).double()
    basis = torch.linalg.qr(snapshots.T).Q
    theta = snapshots[0].clone().requires_grad_()
    # The only knowledge of how the library names its streams: the draw of the first step.
    key = Key(3).fold("condense").fold("step", 0).fold("augment")
    names = augment.parse(method.augmentation, task.data.flips)
    draw = augment.draw_single(names, task.data.num_classes, key.generator())
    units = task.parametrisation.units * task.data.num_classes
    images = augment.apply(draw, task.parametrisation.decode(parameters, 0, units), task.labels)
    features, logits = task.network(theta, images)
    (gradient,) = torch.autograd.grad(reference_loss(logits, task.labels, method.inner_loss), theta, create_graph=True)
    residual = gradient - basis @ (basis.T @ gradient)
    proj = {
        "l1": residual.abs().sum(),
        "l2": residual.norm(),
        "l2sq": residual.square().sum(),
        "relative": residual.norm() / gradient.norm(),
    }[method.proj_norm]
    dm = torch.zeros((), dtype=torch.float64)
    for label in range(task.data.num_classes):
        real = task.data.normalise(task.data.train_images[task.data.train_labels == label])
        seen = augment.apply(draw, real, torch.full((len(real),), label))
        gap = task.network(theta, seen)[0].mean(0) - features[task.labels == label].mean(0)
        dm = dm + gap.square().sum() / task.data.num_classes
    objective: Tensor = method.dm * dm + method.beta * proj
    return objective


METHOD = ESP(steps=STEPS, segment=2, restart=3, start_min=1, start_max=1, real_batch=100)
BETAS: dict[ProjNorm, float] = {"l1": 0.01, "l2": 0.2, "l2sq": 0.2, "relative": 5.0}


@pytest.mark.parametrize("stored", ["pixels", "latent"])
@pytest.mark.parametrize("norm", ["l1", "l2", "l2sq", "relative"])
def test_the_whole_objective_has_the_gradient_of_double_backward(
    double_task: Callable[..., Task], stored: str, norm: ProjNorm
) -> None:
    task = double_task(stored)
    method = ESP(**{**vars(METHOD), "proj_norm": norm, "beta": BETAS[norm]})
    parameters = {name: v.requires_grad_() for name, v in synthetic(start(task, method)).items()}
    expected = dict(
        zip(
            parameters,
            torch.autograd.grad(straight_objective(task, method, parameters), list(parameters.values())),
            strict=True,
        )
    )
    found, _ = first_gradient(task, method)
    assert found.keys() == expected.keys()
    alone, _ = first_gradient(task, ESP(**{**vars(method), "beta": 0.0}))
    for name in found:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 1e-6, (name, float(error))
        # Both terms count, or the comparison would say nothing about one of them.
        share = (found[name] - alone[name]).norm() / found[name].norm()
        assert 0.02 < share < 50, (name, float(share))


def test_the_objective_for_cross_entropy_and_projection_alone(double_task: Callable[..., Task]) -> None:
    task = double_task("pixels")
    method = ESP(**{**vars(METHOD), "inner_loss": "ce", "dm": 0.0, "beta": 1.0, "augmentation": "none"})
    pixels = synthetic(start(task, method))["pixels"].requires_grad_()
    (expected,) = torch.autograd.grad(straight_objective(task, method, {"pixels": pixels}), pixels)
    found, _ = first_gradient(task, method)
    assert (found["pixels"] - expected).norm() < 1e-6 * expected.norm()


def test_the_reported_losses_are_those_of_the_objective(double_task: Callable[..., Task]) -> None:
    task = double_task("latent")
    method = ESP(**{**vars(METHOD), "beta": 0.01})
    state = start(task, method)
    _, metrics = next(condense(method, task, seed=3, state=state))
    total = straight_objective(task, method, synthetic(state))
    torch.testing.assert_close(metrics["loss"], total.detach(), rtol=1e-8, atol=0)
    torch.testing.assert_close(metrics["loss"], metrics["dm"] + 0.01 * metrics["proj"], rtol=1e-12, atol=0)


def test_a_mean_over_features_is_the_sum_divided_by_their_number(double_task: Callable[..., Task]) -> None:
    task = double_task("pixels")
    summed, _ = first_gradient(task, ESP(**{**vars(METHOD), "beta": 0.0}))
    averaged, _ = first_gradient(task, ESP(**{**vars(METHOD), "beta": 0.0, "dm_reduction": "mean"}))
    torch.testing.assert_close(averaged["pixels"] * task.network.features, summed["pixels"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_chunks_give_what_the_whole_gives(double_task: Callable[..., Task], chunk: int) -> None:
    method = ESP(**{**vars(METHOD), "beta": 0.01})
    whole, parts = (
        list(condense(method, task, 3, start(task, method)))[-1][0]
        for task in (double_task("latent"), double_task("latent", chunk=chunk))
    )
    assert int(whole["step"]) == STEPS
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-7, atol=1e-9)


def test_a_set_of_half_a_chunk_is_computed_once(double_task: Callable[..., Task]) -> None:
    method, work = ESP(**{**vars(METHOD), "beta": 0.01, "dm": 0.0}), []
    images = len(double_task("latent").labels)
    for chunk in (2 * images, 2 * images - 1):
        task = double_task("latent", chunk=chunk)
        steps = condense(method, task, 3, start(task, method))
        with profile._Counter() as counter:
            next(steps)
        work.append(counter.operations["convolution"])
    assert 0.7 < work[0] / work[1] < 0.85, "seven passes are not nine"


def synthetic(state: State) -> Tensors:
    return {name[4:]: value.clone() for name, value in state.items() if name.startswith("set.")}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("c++"), reason="compiling needs a C++ compiler")
def test_compiled_derivatives_are_the_eager_ones() -> None:
    network = build("convnet,depth=1,width=2", (1, 4, 4), 2)
    theta, direction = network.init(Key(0)), torch.randn(network.parameters)
    images, weights = torch.randn(3, 1, 4, 4), torch.randn(3, network.features)
    targets = F.one_hot(torch.tensor([0, 1, 1]), 2).float()
    eager, compiled = Derivatives(network, "bce"), Derivatives(network, "bce", compile=True)
    counters.clear()
    for found, expected in zip(
        compiled.parameter_gradient(theta, images, targets),
        eager.parameter_gradient(theta, images, targets),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    found = compiled.mixed_pullback(theta, direction, images, targets, weights)
    expected = eager.mixed_pullback(theta, direction, images, targets, weights)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    pairs = zip(*(one.adjoint(theta, direction, images, targets) for one in (compiled, eager)), strict=True)
    for found, expected in pairs:
        assert (found - expected).norm() < 1e-4 * expected.norm()
    assert not counters["graph_break"], "a piece of a program is not compiled, and nobody is told"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("c++"), reason="compiling needs a C++ compiler")
def test_a_compiled_answer_is_the_eager_one_and_compiled_once() -> None:
    network = build("convnet,depth=1,width=2", (1, 4, 4), 2)
    images, real = torch.randn(4, 1, 4, 4), torch.randn(2, network.features)
    targets = F.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()
    eager, compiled = Derivatives(network, "bce"), Derivatives(network, "bce", compile=True)
    counters.clear()
    for number in range(3):
        theta, basis = network.init(Key(number)), torch.linalg.qr(torch.randn(network.parameters, 3))[0]
        answer = ESP(beta=0.1)._answer(Subspace(basis), real, torch.ones(2))
        slope, (metrics, move) = compiled.answered(theta, images, targets, answer)
        expected, (told, moved) = eager.answered(theta, images, targets, answer)
        assert (slope - expected).norm() < 1e-4 * expected.norm()
        torch.testing.assert_close(move, moved, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(metrics, told, rtol=1e-4, atol=1e-6)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1, "what changes from step to step is an input"
