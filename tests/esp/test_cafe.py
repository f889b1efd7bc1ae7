from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esp import augment
from esp.core import Task, condense
from esp.data.dataset import Dataset
from esp.errors import InputError, UnknownNameError
from esp.methods._levels import align, level_means
from esp.methods._matching import View
from esp.methods.cafe import CAFE
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, build
from esp.rng import Key
from esp.training import accuracy

TINY = CAFE(steps=2, outer=3, inner=2, real_batch=6, test_batch=4)


def blind(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    class Blind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), self.head(x.flatten(1))

    return Blind()


def test_a_network_shows_its_levels(network: Network, data: Dataset) -> None:
    theta, images = network.init(Key(0)), data.normalise(data.train_images[:5])
    levels = network.levels(theta, images)
    assert [tuple(level.shape) for level in levels] == [(5, 4 * 64), (5, 4 * 16), (5, 4 * 4), (5, 4)]
    assert torch.equal(levels[-1], network(theta, images)[0])
    assert all((level >= 0).all() for level in levels)
    pooled = F.avg_pool2d(levels[2].reshape(5, 4, 2, 2), 2).flatten(1)  # before the last pooling
    torch.testing.assert_close(pooled, levels[3])


@pytest.mark.parametrize("stored", ["pixels", "latent"])
@pytest.mark.parametrize("chunk", [512, 5])
def test_losses_and_slopes_are_those_of_the_written_out_loss(
    make_task: Callable[..., Task], stored: str, chunk: int
) -> None:
    task = make_task(stored, chunk=chunk)
    theta = task.network.init(Key(0)) * 3
    parameters = task.parametrisation.init(Key(1), None)
    draw = augment.draw_single(task.operations(augment.STRATEGY), 3, Key(2).generator())
    losses, slopes = align(View(task, parameters, draw), theta, (0.1, 1.0, 2.0, 0.5), 100, Key(3))

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    decoded = task.parametrisation.decode(leaves, 0, 3 * task.parametrisation.units)
    synthetic = task.network.levels(theta, augment.apply(draw, decoded, task.labels))
    labels = task.data.train_labels
    images = augment.apply(draw, task.data.normalise(task.data.train_images), labels)
    real = [level.detach() for level in task.network.levels(theta, images)]
    total = torch.zeros(())
    for weight, one, two in zip((0.1, 0.1, 1.0, 2.0), synthetic, real, strict=True):
        for label in range(3):
            gap = one[task.labels == label].mean(0) - two[labels == label].mean(0)
            total = total + weight * gap.square().sum()
    torch.testing.assert_close(losses["align"], total.detach(), rtol=1e-4, atol=0)
    centres = torch.stack([synthetic[-1][task.labels == label].mean(0) for label in range(3)])
    cross = 0.5 * F.cross_entropy(real[-1] @ centres.T, labels, reduction="sum")
    torch.testing.assert_close(losses["discrimination"], cross.detach(), rtol=1e-4, atol=0)
    expected = torch.autograd.grad(total + cross, list(leaves.values()))
    for name, slope in zip(leaves, expected, strict=True):
        torch.testing.assert_close(slopes[name], slope, rtol=1e-3, atol=1e-4)


def test_level_means_are_class_means(make_task: Callable[..., Task]) -> None:
    task = make_task()
    parameters, theta = task.parametrisation.init(Key(1), None), task.network.init(Key(0))
    found = level_means(View(task, parameters, ()), theta)
    levels = task.network.levels(theta, parameters["pixels"])
    for mean, level in zip(found, levels, strict=True):
        torch.testing.assert_close(mean, level.reshape(3, 2, -1).mean(1))


def updates(method: CAFE, task: Task) -> list[float]:
    return [float(metrics["updates"]) for _, metrics in condense(method, task, 0) if metrics]


def test_both_loops_end_at_their_caps(make_task: Callable[..., Task]) -> None:
    task = make_task()
    assert updates(replace(TINY, settled=0.0, outer=5), task) == [5, 5]  # never settles
    assert updates(replace(TINY, settled=2.0, outer=5, window=2), task) == [2, 2]  # as soon as the window is full
    assert updates(replace(TINY, settled=2.0, outer=3, window=9), task) == [3, 3]  # it never is
    assert CAFE()._caps(make_task(ipc=1)) == (4, 4)


def test_training_ends_when_the_accuracy_moves_or_at_its_cap(make_task: Callable[..., Task]) -> None:
    task = make_task()
    theta, state = task.network.init(Key(0)), task.start("noise", Key(0))

    def trained(inner: int, moved: float) -> Tensor:
        return replace(TINY, inner=inner, moved=moved, window=2)._train(task, theta, state, Key(1))

    two, four = trained(2, 2.0), trained(4, 2.0)  # an accuracy never moves by more than 1
    assert not torch.equal(two, four)
    assert torch.equal(trained(4, -1.0), two)  # any two accuracies differ by more than that


def test_accuracies_are_true(make_task: Callable[..., Task]) -> None:
    task = make_task()
    theta, data = task.network.init(Key(0)), task.data
    whole = accuracy(task.network, theta, data.train_images, data.train_labels, data.normalise, 512)
    assert replace(TINY, test_batch=100)._accuracy(task, theta, Key(0)) == whole


@pytest.mark.parametrize("classes", [2, 5])
def test_any_number_of_classes_and_channels(make_dataset: Callable[..., Dataset], classes: int) -> None:
    data = make_dataset(classes=classes, shape=(1, 8, 12))
    made = build("pixels", Frame(classes, 1, data.shape))
    task = Task(data, build_network("convnet,depth=2,width=3", data.shape, classes), made)
    *_, (state, metrics) = condense(TINY, task, 0)
    assert state["set.pixels"].shape == (classes, 1, 8, 12)
    assert all(value.isfinite() for value in metrics.values())


def test_the_rate_of_pixels_is_halved_three_times(make_task: Callable[..., Task]) -> None:
    method = replace(TINY, steps=10, outer=1, augmentation="none", momentum=0.0)
    task, found = make_task(), []
    for step in (0, 5, 6, 8, 9):
        state = {**method.init(task, Key(0)), "step": torch.tensor(step)}
        after, _ = method._update(task, state, task.network.init(Key(1)), Key(2))
        found.append(float((after["set.pixels"] - state["set.pixels"]).norm()))
    assert [round(found[0] / move, 2) for move in found] == [1, 1, 2, 4, 8]


def test_adam_counts_updates_not_networks(make_task: Callable[..., Task]) -> None:
    *_, (state, _) = condense(replace(TINY, settled=0.0), make_task("latent"), 0)
    assert (int(state["step"]), int(state["updates"])) == (2, 6)


def test_what_it_cannot_do_is_refused(make_task: Callable[..., Task]) -> None:
    task = make_task()
    with pytest.raises(InputError, match="window of at least 1"):
        replace(TINY, window=0).check(task)
    with pytest.raises(UnknownNameError, match="blur"):
        replace(TINY, augmentation="blur").check(task)
    other = build_network(f"{__name__}:blind", task.data.shape, 3)
    with pytest.raises(InputError, match="only shows its last features"):
        TINY.check(replace(task, network=other))
