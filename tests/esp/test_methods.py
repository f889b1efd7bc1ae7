from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esp import artifact
from esp.core import Method, State, Task, condense, synthetic_parameters
from esp.data.dataset import Dataset
from esp.errors import DivergedError, EspError, InputError, MismatchError, UnknownNameError
from esp.methods import METHODS
from esp.methods._matching import Cotangent, Rates, View, class_means, synthetic_means
from esp.methods.dm import DM
from esp.methods.random import Random
from esp.networks.flat import build as build_network
from esp.parametrisation import PARAMETRISATIONS, decode_all, labels
from esp.registry import resolve
from esp.rng import Key
from esp.trajectory import Experts

SMALL = {"steps": 5, "real_batch": 6, "segment": 2, "restart": 2, "start_max": 3, "student_steps": 3}
SMALL |= {"decoder_pretrain": 2, "train_images": 12, "test_batch": 4, "outer": 2, "inner": 2}
ONLY = {"random": "pixels", "herding": "pixels", "kcenter": "pixels", "kfs": "latent"}
PAIRS = [(name, stored) for name in METHODS for stored in PARAMETRISATIONS if ONLY.get(name, stored) == stored]


def make(name: str, **options: Any) -> Method:
    """A method at a size that takes a moment."""
    kind = resolve(METHODS, "method", name)
    wanted = {field.name for field in fields(kind) if field.init}
    method: Method = kind(**{key: value for key, value in {**SMALL, **options}.items() if key in wanted})
    return method


def states(method: Method, task: Task, seed: int = 0, state: State | None = None) -> list[State]:
    return [found for found, _ in condense(method, task, seed, state)]


def equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


battery = pytest.mark.parametrize(("name", "stored"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])


@battery
def test_a_run_makes_a_balanced_finite_set_within_its_budget(
    make_task: Callable[..., Task], name: str, stored: str
) -> None:
    task, method = make_task(stored), make(name)
    before = torch.get_rng_state()
    run = list(condense(method, task, 0))
    assert torch.equal(before, torch.get_rng_state())
    assert [int(state["step"]) for state, _ in run] == list(range(method.steps + 1))
    assert run[0][1] == {}
    for state, metrics in run[1:]:
        assert all(value.shape == () and value.isfinite() for value in metrics.values())
        assert all(value.isfinite().all() for value in state.values())
    parameters = synthetic_parameters(run[-1][0])
    assert sum(value.numel() for value in parameters.values()) == task.parametrisation.stored
    assert task.parametrisation.stored <= task.parametrisation.frame.budget
    images = decode_all(task.parametrisation, parameters)
    assert images.shape == (len(task.labels), *task.data.shape)
    assert images.dtype == torch.float32
    assert len(set(torch.bincount(labels(task.parametrisation)).tolist())) == 1


@battery
def test_every_stored_tensor_is_learned(make_task: Callable[..., Task], name: str, stored: str) -> None:
    run = states(make(name), make_task(stored))
    if len(run) == 1:
        pytest.skip("a selection learns nothing")
    first, last = synthetic_parameters(run[0]), synthetic_parameters(run[-1])
    for tensor in first:
        # Codes of one pixel reach a quarter of the first kernel.
        assert (first[tensor] != last[tensor]).float().mean() > 0.2, tensor


@battery
def test_the_seed_decides_every_bit(make_task: Callable[..., Task], name: str, stored: str) -> None:
    one, same, other = (states(make(name), make_task(stored), seed)[-1] for seed in (0, 0, 1))
    assert equal(one, same)
    assert not equal(synthetic_parameters(one), synthetic_parameters(other))


@battery
def test_a_run_goes_on_from_any_saved_state_to_the_same_bits(
    make_task: Callable[..., Task], name: str, stored: str, tmp_path: Path
) -> None:
    method = make(name)
    whole = states(method, make_task(stored))
    for number, state in enumerate(whole):
        artifact.save(tmp_path / "checkpoint", state, {})
        again = states(method, make_task(stored), 0, artifact.load(tmp_path / "checkpoint").tensors)
        assert len(again) == len(whole) - 1 - number
        for one, two in zip(again, whole[number + 1 :], strict=True):
            assert equal(one, two)


@battery
def test_a_step_replaces_and_never_changes_the_state(make_task: Callable[..., Task], name: str, stored: str) -> None:
    run = condense(make(name), make_task(stored), 0)
    kept = []
    for state, _ in run:
        kept.append((state, {key: value.clone() for key, value in state.items()}))
    assert all(equal(state, copy) for state, copy in kept)


@pytest.mark.parametrize("name", METHODS)
def test_the_papers_defaults_make_a_method(name: str) -> None:
    method = resolve(METHODS, "method", name)()
    assert method.default_parametrisation in PARAMETRISATIONS
    assert isinstance(method.needs_experts, bool)
    assert method.steps >= 0
    assert hash(method) is not None
    with pytest.raises(AttributeError):
        method.steps = 3


def refused(method: Method, task: Task, error: type[EspError], match: str) -> None:
    """check() refuses, and condense() does so before it has made a state."""
    for start in (lambda: method.check(task), lambda: next(condense(method, task, 0))):
        with pytest.raises(error, match=match):
            start()


@pytest.mark.parametrize("name", ["dm", "esp"])
def test_options_that_make_no_sense_are_refused_before_any_work(make_task: Callable[..., Task], name: str) -> None:
    refused(make(name, augmentation="blur"), make_task(), UnknownNameError, "unknown augmentation 'blur'")
    refused(make(name, real_batch=0), make_task(), InputError, "real_batch of at least 1")
    refused(make(name, start="zeros"), make_task(), UnknownNameError, "unknown start 'zeros'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"restart": 0}, "restart and segment of at least 1"),
        ({"segment": 0}, "restart and segment of at least 1"),
        ({"start_min": 3, "start_max": 2}, "start_min <= start_max"),
        ({"start_min": -1}, "0 <= start_min"),
        ({"segment": 6}, "has 5 epochs, but segments of 6"),
        ({"segment": 3}, "start_max=3 plus segment=3 is more than the 5 epochs"),
    ],
    ids=str,
)
def test_segments_that_do_not_fit_the_experts_are_refused(
    make_task: Callable[..., Task], change: dict[str, int], match: str
) -> None:
    refused(make("esp", **change), make_task(), InputError, match)


@pytest.mark.parametrize("option", ["proj_norm", "dm_reduction", "inner_loss", "inner_step"])
def test_choices_that_are_none_are_refused(make_task: Callable[..., Task], option: str) -> None:
    refused(make("esp", **{option: "other"}), make_task(), UnknownNameError, f"unknown {option} 'other'")


def test_experts_that_are_missing_or_of_something_else_are_refused(
    make_task: Callable[..., Task], data: Dataset
) -> None:
    refused(make("esp"), make_task(experts=None), InputError, "needs expert trajectories")
    refused(make("esp"), make_task(experts=Experts(())), InputError, "needs expert trajectories")
    other = build_network("convnet3,width=5", data.shape, 3)
    refused(make("esp"), make_task(network=other), MismatchError, "has network convnet3,width=4, not convnet3,width=5")
    changed = replace(data, fingerprint="0" * 64)
    refused(make("esp"), make_task(data=changed), MismatchError, "has fingerprint")


def test_a_selection_must_be_stored_as_pixels(make_task: Callable[..., Task]) -> None:
    refused(Random(), make_task("latent"), InputError, "which only pixels can hold")


def test_a_latent_set_cannot_start_from_real_images(make_task: Callable[..., Task]) -> None:
    for method in (make("esp", start="real"), make("dm", start="real")):
        refused(method, make_task("latent"), InputError, "cannot start from real images")


def test_more_images_than_a_class_has_are_refused(make_task: Callable[..., Task]) -> None:
    make_task(ipc=8)
    with pytest.raises(InputError, match=r"9 images per class are more than the smallest class of tiny has \(8\)"):
        make_task(ipc=9)


@pytest.mark.parametrize("name", ["dm", "esp"])
@pytest.mark.parametrize("steps", [1, 6], ids=["last", "later"])
def test_a_run_that_diverges_says_so_and_yields_no_broken_state(
    make_task: Callable[..., Task], name: str, steps: int
) -> None:
    run = condense(make(name, steps=steps, lr_pixels=1e38), make_task(), 0)
    seen = [next(run)[0]]
    with pytest.raises(DivergedError, match=r"step 1 diverged: pixels of the synthetic set"):
        seen += [state for state, _ in run]
    if steps == 1:
        assert all(value.isfinite().all() for state in seen for value in state.values())


def test_random_takes_different_real_images_of_each_class(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=5)
    images = synthetic_parameters(states(Random(), task)[-1])["pixels"]
    real = task.data.normalise(task.data.train_images)
    places = [int((real == image).flatten(1).all(1).nonzero()) for image in images]
    assert len(set(places)) == 15
    assert torch.equal(task.data.train_labels[places], labels(task.parametrisation))


def test_random_takes_every_image_as_often_as_any_other(make_task: Callable[..., Task]) -> None:
    task = make_task(ipc=4)
    real = task.data.normalise(task.data.train_images).flatten(1)
    counts = torch.zeros(24)
    for seed in range(100):
        chosen = synthetic_parameters(next(condense(Random(), task, seed))[0])["pixels"].flatten(1)
        counts += torch.cdist(chosen, real).argmin(1).bincount(minlength=24)
    assert counts.sum() == 1200
    assert (counts - 50).abs().max() < 25  # five deviations


def everything(task: Task) -> State:
    """The whole training set as a synthetic set of pixels, classes in order."""
    order = task.data.train_labels.argsort(stable=True)
    return {"set.pixels": task.data.normalise(task.data.train_images[order])}


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_dm_is_zero_when_synthetic_and_real_images_are_the_same(
    make_task: Callable[..., Task], augmentation: str
) -> None:
    task, method = make_task(ipc=8), DM(steps=3, real_batch=8, augmentation=augmentation)
    start = next(condense(method, task, 0))[0]
    run = list(condense(method, task, 0, {**start, **everything(task)}))
    for state, metrics in run:
        assert metrics["dm"] < 1e-9
        torch.testing.assert_close(state["set.pixels"], everything(task)["set.pixels"], rtol=0, atol=1e-4)
    moved = {**start, "set.pixels": everything(task)["set.pixels"].flip(2)}
    assert next(condense(method, task, 0, moved))[1]["dm"] > 1e-3


def test_a_step_of_dm_is_sgd_on_its_loss(make_task: Callable[..., Task]) -> None:
    task, method = make_task(), DM(steps=1, real_batch=100, augmentation="none", lr_pixels=0.7)
    before, after = states(method, task)
    theta = task.network.init(Key(0).fold("condense").fold("step", 0).fold("network"))
    pixels = before["set.pixels"].clone().requires_grad_()
    loss = torch.zeros(())
    for label in range(3):
        real = task.data.normalise(task.data.train_images[task.data.train_labels == label])
        gap = task.network(theta, pixels[task.labels == label])[0].mean(0) - task.network(theta, real)[0].mean(0)
        loss = loss + gap.square().sum()
    (slope,) = torch.autograd.grad(loss, pixels)
    torch.testing.assert_close(after["set.pixels"], (pixels - 0.7 * slope).detach(), rtol=1e-5, atol=1e-6)
    metrics = list(condense(method, task, 0))[-1][1]
    torch.testing.assert_close(metrics["dm"], loss.detach(), rtol=1e-5, atol=0)


def test_dm_draws_a_fresh_network_at_every_step_and_starts_from_real_images(make_task: Callable[..., Task]) -> None:
    task, method = make_task(), DM(steps=3, real_batch=100, augmentation="none", lr_pixels=0.0)
    run = list(condense(method, task, 0))
    assert len({float(metrics["dm"]) for _, metrics in run[1:]}) == 3  # nothing else changes at a rate of zero
    real = task.data.normalise(task.data.train_images).flatten(1)
    assert torch.cdist(run[0][0]["set.pixels"].flatten(1), real).min(1).values.max() < 1e-3
    noise = next(condense(replace(method, start="noise"), task, 0))[0]["set.pixels"]
    assert torch.cdist(noise.flatten(1), real).min() > 1


def test_only_the_drawn_classes_move(make_task: Callable[..., Task]) -> None:
    method = make("esp", steps=4, beta=0.0, real_classes=1)
    drawn = set()
    for seed in range(6):
        before, after = (state["set.pixels"] for state in states(method, make_task(), seed)[:2])
        moved = (before != after).flatten(1).any(1).reshape(3, 2)
        assert moved.all(1).sum() == moved.any(1).sum() == 1
        drawn.add(int(moved.all(1).nonzero()))
    assert drawn == {0, 1, 2}


def test_each_term_of_esp_can_be_left_out(make_task: Callable[..., Task]) -> None:
    task = make_task()
    proj = list(condense(make("esp", dm=0.0, beta=2.0), task, 0))[1][1]
    assert proj["dm"] == 0
    torch.testing.assert_close(proj["loss"], 2 * proj["proj"])
    alone = list(condense(make("esp", beta=0.0), task, 0))[1][1]
    torch.testing.assert_close(alone["loss"], alone["dm"])
    assert 0 < alone["inside"] <= 1
    assert alone["gradient"] > 0


def test_esp_draws_other_segments_after_a_restart(make_task: Callable[..., Task]) -> None:
    often = make("esp", steps=24, restart=1, start_min=2, start_max=3, lr_network=0.0, real_batch=2)
    students = {tuple(state["student"].tolist()) for state in states(often, make_task())[1:]}
    assert len(students) == 4  # two experts, two starts
    kept = states(make("esp", steps=6, restart=6, lr_network=0.0, real_batch=2), make_task())
    assert len({tuple(state["student"].tolist()) for state in kept[1:]}) == 1


def test_rates_belong_to_kinds_and_fall_with_the_factor() -> None:
    parameters = {"codes": torch.ones(2), "decoders.0.weight": torch.ones(2), "pixels": torch.ones(2)}
    slopes = {name: torch.tensor([3.0, -0.2]) for name in parameters}
    rates = Rates("adam", pixels=0.5, codes=0.1, decoders=0.01)
    state = {f"set.{name}": value for name, value in parameters.items()} | {"step": torch.tensor(0)}
    after = rates.update({**state, **rates.start(parameters)}, slopes, 0.5)
    for name, rate in (("codes", 0.05), ("decoders.0.weight", 0.005), ("pixels", 0.25)):
        torch.testing.assert_close(after[f"set.{name}"], 1 - rate * torch.tensor([1.0, -1.0]))  # Adam's first step
    assert int(after["step"]) == 1
    with pytest.raises(UnknownNameError, match="unknown optimiser 'lion'"):
        Rates("lion", 1, 1, 1).start(parameters)


@pytest.mark.parametrize("name", ["dm", "esp"])
def test_the_rates_of_codes_fall_linearly_to_zero(make_task: Callable[..., Task], name: str) -> None:
    first, last = (
        states(make(name, steps=steps, lr_decoders=0.0, real_batch=2), make_task("latent"))[1] for steps in (1, 4)
    )
    torch.testing.assert_close(first["set.codes"], last["set.codes"])  # the first step has the whole rate
    run = states(make(name, steps=40, lr_codes=1.0, real_batch=2), make_task("latent"))
    moves = [float((b["set.codes"] - a["set.codes"]).abs().max()) for a, b in pairwise(run)]
    assert moves[0] == pytest.approx(1, rel=1e-2)
    assert moves[-1] < 4 / 40


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_chunks_cover_the_set_once_in_whole_units(make_task: Callable[..., Task], chunk: int) -> None:
    task = make_task("latent", chunk=chunk)
    view = View(task, task.parametrisation.init(Key(0), None), ())
    units, rows = zip(*view.chunks(), strict=True)
    assert [u.start for u in units] == [0, *(u.stop for u in units[:-1])]
    assert units[-1].stop == 3 * task.parametrisation.units
    each = task.parametrisation.multiplicity
    assert all(r.start == u.start * each and r.stop == u.stop * each for u, r in zip(units, rows, strict=True))
    sizes = [r.stop - r.start for r in rows]
    assert max(sizes) <= max(chunk, each)
    assert max(sizes) - min(sizes) <= each
    whole = view.images(slice(0, units[-1].stop), slice(0, rows[-1].stop))
    torch.testing.assert_close(torch.cat([view.images(*part) for part in view.chunks()]), whole)


def test_class_means_are_means_and_absent_classes_are_zero() -> None:
    features = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    found = class_means([(features, torch.tensor([2, 0, 2]))], 4)
    parts = class_means([(features[:1], torch.tensor([2])), (features[1:], torch.tensor([0, 2]))], 4)
    assert torch.equal(found, parts)
    assert found.tolist() == [[3, 4], [0, 0], [3, 4], [0, 0]]


def test_a_cotangent_pulls_class_means_back(make_task: Callable[..., Task]) -> None:
    task = make_task("latent")
    theta = task.network.init(Key(0))
    view = View(task, task.parametrisation.init(Key(1), None), ())
    pull = torch.randn(3, task.network.features)
    found = view.pull(Cotangent(view, theta, pull))
    leaves = {name: value.clone().requires_grad_() for name, value in view.parameters.items()}
    images = task.parametrisation.decode(leaves, 0, 3 * task.parametrisation.units)
    features = task.network(theta, images)[0]
    means = torch.stack([features[task.labels == label].mean(0) for label in range(3)])
    expected = torch.autograd.grad((means * pull).sum(), list(leaves.values()))
    torch.testing.assert_close(means.detach(), synthetic_means(view, theta), rtol=1e-4, atol=1e-5)
    for name, slope in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], slope, rtol=1e-3, atol=1e-5)


def test_real_images_are_drawn_without_repeats_and_normalised(make_task: Callable[..., Task]) -> None:
    task = make_task()
    images, target = task.real([2, 0], 5, Key(0))
    assert target.tolist() == [2] * 5 + [0] * 5
    real = task.data.normalise(task.data.train_images)
    places = [int((real == image).flatten(1).all(1).nonzero()) for image in images]
    assert len(set(places)) == 10
    assert torch.equal(task.data.train_labels[places], target)
    again, other = task.real([2, 0], 5, Key(0))[0], task.real([2, 0], 5, Key(1))[0]
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    # Which images of a class are drawn does not depend on the other classes; a small class gives all it has.
    assert torch.equal(task.real([0], 5, Key(0))[0], images[5:])
    assert len(task.real([1], 100, Key(0))[0]) == 8


def test_pulling_back_sums_over_chunks(make_task: Callable[..., Task]) -> None:
    def ones(images: Tensor, rows: slice) -> Tensor:
        return torch.ones_like(images) * torch.arange(rows.start, rows.stop).view(-1, 1, 1, 1)

    whole, parts = (
        View(task, task.parametrisation.init(Key(0), None), ()).pull(ones)
        for task in (make_task("latent"), make_task("latent", chunk=5))
    )
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-2)
        assert math.isfinite(float(whole[name].sum()))
