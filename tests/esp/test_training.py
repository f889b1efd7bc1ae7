from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esp.cutmix import cutmix
from esp.data.dataset import Dataset
from esp.errors import DivergedError, InputError, UnknownNameError
from esp.evaluation import DSA, IDC
from esp.networks.convnet import convnet3
from esp.networks.flat import Network
from esp.rng import Key
from esp.training import Recipe, Snapshot, Trainer, accuracy

CPU = torch.device("cpu")
EVERYTHING = Recipe(6, 5, 0.05, 0.9, 1e-3, (1 / 3, 2 / 3), 0.3, True, mode="sequence", cutmix=0.5)


def run(
    network: Network, recipe: Recipe, data: Dataset, start: Snapshot | None = None, seed: int = 0
) -> list[Snapshot]:
    trainer, key = Trainer(network, recipe, data.flips, CPU), Key(seed)
    begin = trainer.start(key) if start is None else start
    return [begin, *trainer.epochs(begin, data.train_images, data.train_labels, data.normalise, key)]


def rates(recipe: Recipe) -> list[tuple[int, float]]:
    """(first epoch, learning rate) of every stretch of equal learning rate."""
    found: list[tuple[int, float]] = []
    for epoch in range(recipe.epochs):
        if not found or not math.isclose(found[-1][1], recipe.lr_at(epoch)):
            found.append((epoch, recipe.lr_at(epoch)))
    return found


def test_the_schedule_of_dsa_is_the_one_of_its_code() -> None:
    # 1001 epochs; the rate falls after epoch 1000 // 2 + 1 = 501 is done, with a new optimiser.
    recipe = DSA.recipe
    assert rates(recipe) == [(0, 0.01), (502, pytest.approx(0.001))]
    assert (recipe.epochs, recipe.batch, recipe.momentum, recipe.weight_decay) == (1001, 256, 0.9, 5e-4)
    assert recipe.reset_momentum
    assert (recipe.mode, recipe.cutmix, recipe.loss) == ("single", 0.0, "ce")
    assert recipe.augmentation == "color_crop_cutout_flip_scale_rotate"


def test_the_schedule_of_idc_is_the_one_of_its_code() -> None:
    # MultiStepLR at 2 * 1000 // 3 and 5 * 1000 // 6, gamma 0.2; cutout gives way to CutMix.
    recipe = IDC.recipe
    assert rates(recipe) == [(0, 0.01), (666, pytest.approx(0.002)), (833, pytest.approx(0.0004))]
    assert (recipe.epochs, recipe.batch, recipe.momentum, recipe.weight_decay) == (1000, 64, 0.9, 5e-4)
    assert not recipe.reset_momentum
    assert (recipe.mode, recipe.cutmix, recipe.loss) == ("sequence", 0.5, "ce")
    assert recipe.augmentation == "color_crop_flip_scale_rotate"


def test_exact_fractions_of_the_epochs_are_not_rounded_down() -> None:
    for epochs in (3, 10, 49, 300, 900):
        assert Recipe(epochs, 1, 1.0, milestones=(1 / 3, 2 / 3)).boundaries == (epochs // 3, 2 * epochs // 3)
    assert Recipe(100, 1, 1.0, milestones=(0.29, 0.57, 0.58)).boundaries == (29, 57, 58)  # 0.29 * 100 < 29


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_training_is_the_sgd_of_torch(network: Network, data: Dataset, reset: bool, loss: Any) -> None:
    recipe = Recipe(4, 7, 0.05, 0.9, 0.01, (0.5,), 0.1, reset, augmentation="none", loss=loss)
    states = run(network, recipe, data)
    module = convnet3((3, 8, 8), 3, width=4)
    module.load_state_dict(network.tensors(states[0].theta))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(4):
        if epoch == 2:
            optimiser.param_groups[0]["lr"] = 0.005
            if reset:
                optimiser = torch.optim.SGD(module.parameters(), lr=0.005, momentum=0.9, weight_decay=0.01)
        order = torch.randperm(24, generator=Key(0).fold("epoch", epoch, "order").generator())
        losses = []
        for rows in torch.split(order, 7):
            logits = module(data.normalise(data.train_images[rows]))[1]
            labels = data.train_labels[rows]
            hot = F.one_hot(labels, 3).float()
            value = (
                F.cross_entropy(logits, labels)
                if loss == "ce"
                else F.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(1).mean()
            )
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(value.item() * len(rows))
        expected = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(states[epoch + 1].theta, expected, rtol=1e-4, atol=1e-5)
        assert states[epoch + 1].loss == pytest.approx(sum(losses) / 24, rel=1e-5)


def test_training_goes_on_from_any_snapshot_to_the_same_bits(network: Network, data: Dataset) -> None:
    states = run(network, EVERYTHING, data)
    assert [state.epoch for state in states] == list(range(7))
    for state in states:
        continued = run(network, EVERYTHING, data, state)
        assert torch.equal(continued[-1].theta, states[-1].theta)
        assert torch.equal(continued[-1].velocity, states[-1].velocity)
        assert [other.loss for other in continued[1:]] == [other.loss for other in states[state.epoch + 1 :]]


def test_snapshots_keep_their_weights_while_training_goes_on(network: Network, data: Dataset) -> None:
    states = run(network, EVERYTHING, data)
    assert len({tuple(state.theta.tolist()) for state in states}) == 7


def test_the_seed_decides_everything(network: Network, data: Dataset) -> None:
    before = torch.get_rng_state()
    one, same, other = (run(network, EVERYTHING, data, seed=seed)[-1].theta for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"augmentation": "none"}, {"mode": "single"}, {"cutmix": 0.0}, {"batch": 6}])
def test_every_part_of_the_recipe_is_used(network: Network, data: Dataset, change: dict[str, Any]) -> None:
    thetas = [run(network, recipe, data)[-1].theta for recipe in (EVERYTHING, replace(EVERYTHING, **change))]
    assert not torch.equal(*thetas)


def test_a_training_that_diverges_says_so(network: Network, data: Dataset) -> None:
    with pytest.raises(DivergedError, match=r"training diverged in epoch \d+: the loss is"):
        run(network, Recipe(50, 8, 1e30), data)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": -1.0},
        {"mode": "multi"},
        {"loss": "hinge"},
        {"schedule": "none"},
        {"schedule": "cosine", "milestones": (0.5,)},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="training recipe"):
        replace(EVERYTHING, **change)


def test_an_unknown_augmentation_is_refused_before_training(network: Network) -> None:
    with pytest.raises(UnknownNameError, match="unknown augmentation"):
        Trainer(network, replace(EVERYTHING, augmentation="blur"), True, CPU)


def mixed(seed: int, probability: float = 1.0, n: int = 6, height: int = 12, width: int = 10) -> tuple[Tensor, Tensor]:
    """Image i holds the number i everywhere, and class i."""
    images = torch.arange(n, dtype=torch.float32).view(-1, 1, 1, 1).expand(n, 2, height, width)
    return cutmix(images, torch.eye(n), probability, torch.Generator().manual_seed(seed))


def test_cutmix_weighs_the_labels_by_the_area_that_is_kept() -> None:
    areas = []
    for seed in range(60):
        images, targets = mixed(seed)
        for own in range(6):
            foreign = images[own, 0] != own
            partner = int(images[own, 0][foreign][0]) if foreign.any() else own
            expected = torch.zeros(6)
            expected[own] += 1 - float(foreign.float().mean())
            expected[partner] += float(foreign.float().mean())
            torch.testing.assert_close(targets[own], expected)
            assert torch.equal(images[own, 0], images[own, 1])
        areas.append(float((images != torch.arange(6.0).view(-1, 1, 1, 1)).float().mean()))
    assert max(areas) > 0.4
    assert min(areas) < 0.05


def test_cutmix_cuts_one_rectangle_at_the_same_place_of_all_images() -> None:
    for seed in range(40):
        images, targets = mixed(seed)
        moved = [(images[own, 0] != own) for own in range(6) if targets[own, own] < 1]
        for mask in moved:
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            assert torch.equal(mask, moved[0])


def test_the_side_of_the_box_is_the_root_of_what_is_not_kept() -> None:
    for seed in range(40):
        kept, row, column = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()[1:]
        half = [int(side * math.sqrt(1 - kept)) // 2 for side in (12, 10)]
        spans = [
            min(side, int(at * side) + h) - max(0, int(at * side) - h)
            for side, at, h in zip((12, 10), (row, column), half, strict=True)
        ]
        targets = mixed(seed)[1]
        away = [1 - float(targets[own, own]) for own in range(6) if targets[own, own] < 1]
        for share in away:
            assert share == pytest.approx(spans[0] * spans[1] / 120, abs=1e-6)


def test_cutmix_happens_as_often_as_asked() -> None:
    changed = sum(not torch.equal(mixed(seed, 0.5)[1], torch.eye(6)) for seed in range(300))
    assert 110 < changed < 160  # half of 300, less the boxes without area and the permutations that keep all in place
    assert all(torch.equal(mixed(seed, 0.0)[1], torch.eye(6)) for seed in range(20))


def test_accuracy_counts_what_is_right_in_any_chunks(network: Network, data: Dataset) -> None:
    theta = network.init(Key(0))
    guesses = network(theta, data.normalise(data.test_images))[1].argmax(1)
    expected = float((guesses == data.test_labels).float().mean())
    for chunk in (1, 4, 15, 100):
        found = accuracy(network, theta, data.test_images, data.test_labels, data.normalise, chunk)
        assert found == pytest.approx(expected)
    assert accuracy(network, theta, data.test_images, guesses, data.normalise, 4) == 1
