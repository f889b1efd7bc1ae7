from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from esp.core import State, Task, condense, synthetic_parameters
from esp.data.dataset import Dataset
from esp.errors import InputError, UnknownNameError
from esp.methods.idc import IDC, kernels
from esp.multiformation import MultiFormation
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.parametrisation import Frame, build, decode_all
from esp.rng import Key

TINY = IDC(steps=3, restart=2, real_batch=5, train_images=8)


def linear(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), self.head(x.flatten(1))

    return Linear()


@pytest.mark.parametrize(("ipc", "classes"), [(1, 3), (5, 2)])
def test_a_stored_image_decodes_to_four(ipc: int, classes: int) -> None:
    made = build("multiformation", Frame(classes, ipc, (3, 32, 32)))
    parameters = made.init(Key(0), None)
    images = decode_all(made, parameters)
    assert images.shape == (classes * 4 * ipc, 3, 32, 32)
    assert made.stored == parameters["pixels"].numel() == made.frame.budget
    quarter = parameters["pixels"][ipc][:, :16, 16:]  # the second part of the first image of class 1
    expected = F.interpolate(quarter[None], scale_factor=2, mode="bilinear")[0]
    torch.testing.assert_close(images[4 * ipc + 1], expected)
    torch.testing.assert_close(made.decode(parameters, 1, 2), images[4:8])


@pytest.mark.parametrize(("side", "factor"), [((7, 10), 3), ((28, 28), 3), ((5, 5), 5), ((6, 8), 2)])
def test_sides_that_do_not_divide_are_padded_with_the_mean_colour(side: tuple[int, int], factor: int) -> None:
    made = MultiFormation(Frame(1, 2, (2, *side)), factor)
    pixels = torch.ones(2, 2, *side)
    images = made.decode({"pixels": pixels}, 0, 2)
    assert images.shape == (2 * factor**2, 2, *side)
    tall, wide = made.part
    torch.testing.assert_close(images[0], torch.ones(2, *side))
    padded = factor * tall > side[0] or factor * wide > side[1]
    assert float(images[-1].amin()) == pytest.approx(0 if padded else 1, abs=1e-5)


def test_a_factor_of_one_is_pixels_and_senseless_ones_are_refused() -> None:
    frame = Frame(2, 2, (3, 6, 6))
    pixels = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(MultiFormation(frame, 1).decode({"pixels": pixels}, 0, 4), pixels)
    for factor in (0, 7):
        with pytest.raises(InputError, match="factor="):
            MultiFormation(frame, factor)


def test_each_part_starts_as_a_different_real_image_of_the_class(make_task: Callable[..., Task]) -> None:
    task = make_task("multiformation", ipc=2)
    parts = synthetic_parameters(task.start("auto", Key(0)))["pixels"]
    small = F.interpolate(task.data.normalise(task.data.train_images), size=(4, 4))
    found = set()
    for number, image in enumerate(parts):
        for part in (image[:, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)):
            row = int((small == part).flatten(1).all(1).nonzero())
            assert task.data.train_labels[row] == number // 2
            found.add(row)
    assert len(found) == 24
    scarce = make_task("multiformation", ipc=8)  # 32 small images of a class that has eight
    assert scarce.start("real", Key(0))["set.pixels"].isfinite().all()


@pytest.mark.parametrize(("ipc", "rate"), [(1, 5e-4), (10, 5e-3), (50, 2.5e-2)])
def test_the_learning_rate_grows_with_images_and_pixels(ipc: int, rate: float) -> None:
    assert IDC().rate(Frame(10, ipc, (3, 32, 32))) == pytest.approx(rate)
    assert IDC().rate(Frame(10, ipc, (3, 64, 64))) == pytest.approx(4 * rate)


def test_only_convolution_kernels_are_matched(network: Network) -> None:
    found = network.tensors(kernels(network))
    assert [name for name, mask in found.items() if mask.all()] == [f"convs.{i}.weight" for i in range(3)]
    assert all(mask.all() or not mask.any() for mask in found.values())


def moved(task: Task, method: IDC) -> list[State]:
    return [state for state, _ in condense(method, task, 0)]


@pytest.mark.parametrize("distance", ["mse", "l1"])
@pytest.mark.parametrize("chunk", [512, 3])
def test_slopes_are_those_of_a_double_backward_pass(
    make_task: Callable[..., Task], data: Dataset, distance: Any, chunk: int
) -> None:
    """One class, float64, augmentation off: d distance / d pixels, times 1 / std^2 for raw space."""
    task = make_task("multiformation", chunk=chunk)
    method = replace(TINY, augmentation="none", real_batch=100, distance=distance)
    state = task.start("real", Key(0))
    theta = task.network.init(Key(1)).double()
    pixels = (state["set.pixels"] + 0.3 * torch.randn(state["set.pixels"].shape)).double().requires_grad_()
    doubled = Task(data=replaced_dtype(data), network=task.network, parametrisation=task.parametrisation, chunk=chunk)
    value, slopes = method._match(doubled, {"set.pixels": pixels.detach(), "network": theta}, 1, Key(2))

    weights = {name: w.clone().requires_grad_() for name, w in task.network.tensors(theta).items()}

    def gradients(images: Tensor, keep: bool) -> list[Tensor]:
        _, logits = functional_call(task.network._module, weights, (images,))
        loss = F.cross_entropy(logits, torch.full((len(images),), 1))
        names = [name for name in weights if weights[name].ndim == 4]
        return list(torch.autograd.grad(loss, [weights[name] for name in names], create_graph=keep))

    real = doubled.data.normalise(doubled.data.train_images[data.train_labels == 1])
    images = task.parametrisation.decode({"pixels": pixels}, 2, 4)
    gaps = [s - r.detach() for s, r in zip(gradients(images, True), gradients(real, False), strict=True)]
    loss = torch.stack([(g.square() if distance == "mse" else g.abs()).sum() for g in gaps]).sum()
    (expected,) = torch.autograd.grad(loss, pixels)
    torch.testing.assert_close(value, loss.detach())
    std = torch.tensor(data.std, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(slopes["pixels"], expected / std**2, rtol=1e-6, atol=1e-9)
    assert not slopes["pixels"][:2].any()


def replaced_dtype(data: Dataset) -> Dataset:
    """The data set with images that normalise to float64."""
    return replace(data, train_images=data.train_images.double() / 255)


def test_a_class_update_is_sgd_in_raw_space_and_momentum_moves_the_others(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=2)
    method = replace(TINY, steps=1, augmentation="none", real_batch=100, lr_pixels=1e-4)
    first, last = moved(task, method)
    key = Key(0).fold("condense").fold("step", 0)
    theta = task.network.init(Key(0).fold("condense").fold("network", 0))
    raw, std = {"pixels": first["set.pixels"]}, torch.tensor(task.data.std)[:, None, None]
    velocity = torch.zeros_like(raw["pixels"])  # of raw pixels
    for label in range(3):
        state = {"set.pixels": raw["pixels"], "network": theta}
        slope = method._match(task, state, label, key.fold("class", label))[1]["pixels"] * std  # d / d raw pixels
        velocity = 0.5 * velocity + slope
        raw["pixels"] = raw["pixels"] - method.rate(task.parametrisation.frame) * velocity / std
    torch.testing.assert_close(last["set.pixels"], raw["pixels"], rtol=0, atol=1e-5)
    assert not torch.equal(first["set.pixels"], last["set.pixels"])


def test_pixels_stay_in_range_where_networks_begin_and_at_the_end(make_task: Callable[..., Task]) -> None:
    task = make_task("multiformation")
    low, high = (task.data.normalise(torch.full((3, 1, 1), v)) for v in (0.0, 1.0))
    run = moved(task, replace(TINY, steps=4, lr_pixels=50.0, start="noise"))
    inside = [bool(((s["set.pixels"] >= low) & (s["set.pixels"] <= high)).all()) for s in run]
    assert inside == [False, False, False, False, True]
    still = moved(task, replace(TINY, steps=2, lr_pixels=0.0, start="noise"))
    torch.testing.assert_close(still[1]["set.pixels"], still[0]["set.pixels"].clamp(low, high))
    codes = moved(make_task("latent"), replace(TINY, steps=2, lr_codes=0.0, lr_decoders=0.0))
    assert torch.equal(codes[0]["set.codes"], codes[-1]["set.codes"])


def test_the_network_learns_real_images_and_is_redrawn(make_task: Callable[..., Task]) -> None:
    task = make_task(network=build_network("convnet,depth=1,width=8", (3, 8, 8), 3))
    easy = replace(TINY, augmentation="none", cutmix=0.0, lr_pixels=0.0, train_images=24, batch=4, lr_network=0.03)
    run = list(condense(replace(easy, steps=16, restart=8), task, 0))
    losses = [float(metrics["network"]) for _, metrics in run[1:]]
    assert losses[7] < 0.8 * losses[0]
    assert losses[8] > losses[7]
    fixed = list(condense(replace(TINY, lr_network=1e-12), task, 0))
    same = [bool(torch.isclose(a[0]["network"], b[0]["network"]).all()) for a, b in pairwise(fixed[1:])]
    assert same == [True, False]


def test_cutout_is_left_to_cutmix() -> None:
    assert IDC()._recipe.augmentation == "color_crop"
    assert IDC(cutmix=0.0)._recipe.augmentation == "color_crop_cutout"


def test_few_synthetic_images_of_a_class_are_seen(make_task: Callable[..., Task]) -> None:
    task = make_task("latent")
    state = {**task.start("noise", Key(0)), "network": task.network.init(Key(1))}
    slope = replace(TINY, synthetic_batch=1)._match(task, state, 0, Key(2))[1]["codes"]
    assert slope.flatten(1).any(1).sum() == 1


def test_what_makes_no_sense_is_refused(make_task: Callable[..., Task], data: Dataset) -> None:
    task = make_task()
    with pytest.raises(UnknownNameError, match="unknown distance 'cos'"):
        replace(TINY, distance="cos").check(task)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 1"):
        replace(TINY, restart=0).check(task)
    with pytest.raises(UnknownNameError, match="blur"):
        replace(TINY, augmentation="blur").check(task)
    flat = build_network(f"{__name__}:linear", data.shape, 3)
    with pytest.raises(InputError, match="has none"):
        TINY.check(replace(task, network=flat))
