"""Selection on held-out images, learned and stable learning rates, label rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from esp.data.dataset import Dataset
from esp.errors import InputError, MismatchError
from esp.evaluation import MTT, Evaluator, Protocol, Score, require_rate, stable_rate
from esp.networks.flat import Network, build
from esp.rng import Key
from esp.training import Recipe, Trainer

CPU = torch.device("cpu")
SHORT = Protocol("short", Recipe(6, 8, 0.05, 0.9, 5e-4, augmentation="none"), checks=6, held_out=0.4)
TAUGHT = replace(MTT, recipe=replace(MTT.recipe, epochs=4, batch=8, milestones=(), augmentation="none"))


def score(network: Network, data: Dataset, protocol: Protocol, seed: int = 0, **given: Any) -> Score:
    images = given.get("images", data.normalise(data.train_images))
    labels = given.get("labels", data.train_labels)
    return Evaluator(network, protocol, data, images, labels, CPU, 512, False, given.get("rate")).score(seed)


def shuffled(data: Dataset) -> Dataset:
    """The same set with the labels of its test images in another order."""
    order = torch.randperm(len(data.test_labels), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(data.test_labels[order], data.test_labels)
    return replace(data, test_labels=data.test_labels[order])


def test_a_choice_reads_no_test_label_before_it_is_made(network: Network, data: Dataset) -> None:
    protocol = replace(SHORT, checks=3).with_selection((0.001, 0.05))
    accuracies = set()
    for seed in range(2):
        seen, blind = score(network, data, protocol, seed), score(network, shuffled(data), protocol, seed)
        same = replace(seen, accuracy=0.0)
        assert same == replace(blind, accuracy=0.0)  # epoch, rate, curve: everything but the accuracy at the end
        assert seen.best_accuracy is None
        accuracies.add((seen.accuracy, blind.accuracy))
    assert any(seen != blind for seen, blind in accuracies)


def test_the_choice_is_the_best_look_at_held_out_images_over_all_rates(network: Network, data: Dataset) -> None:
    protocol = SHORT.with_selection((0.001, 0.05))
    found = score(network, data, protocol)
    judge = data.held_out(0.4)
    looks: dict[tuple[float, int], tuple[float, float]] = {}
    for lr in protocol.lrs:
        trainer = Trainer(network, replace(SHORT.recipe, lr=lr), data.flips, CPU)
        key = Key(0).fold("evaluate")
        for snapshot in trainer.epochs(
            trainer.start(key), data.normalise(data.train_images), data.train_labels, lambda x: x, key
        ):
            on = [
                float((network(snapshot.theta, data.normalise(x))[1].argmax(1) == y).float().mean())
                for x, y in ((judge.test_images, judge.test_labels), (data.test_images, data.test_labels))
            ]
            looks[lr, snapshot.epoch] = (on[0], on[1])
    assert found.lr is not None
    assert found.selected_epoch is not None
    held_out, tested = looks[found.lr, found.selected_epoch]
    assert held_out == pytest.approx(found.held_out_accuracy) == max(first for first, _ in looks.values())
    assert tested == pytest.approx(found.accuracy)


def test_the_learned_rate_is_used_and_a_set_without_one_is_refused(network: Network, data: Dataset) -> None:
    fixed = replace(TAUGHT, lr_of="number", recipe=replace(TAUGHT.recipe, lr=0.03))
    assert score(network, data, TAUGHT, rate=0.03) == score(network, data, fixed)
    assert score(network, data, TAUGHT, rate=0.03).lr == 0.03
    assert score(network, data, TAUGHT, rate=0.01) != score(network, data, fixed)
    assert score(network, data, fixed, rate=0.5) == score(network, data, fixed)  # another protocol does not care
    with pytest.raises(MismatchError, match="came without one") as caught:
        score(network, data, TAUGHT)
    assert "--protocol dsa" in caught.value.hint
    assert "fallback_lr" in caught.value.hint


def test_a_fallback_only_where_it_was_given_and_no_rate_that_climbs() -> None:
    given = replace(TAUGHT, fallback_lr=0.02)
    assert require_rate(given, None) == 0.02
    assert require_rate(given, 0.5) == 0.5
    for rate in (-0.01, 0.0, float("nan")):
        with pytest.raises(InputError, match="nothing can be trained"):
            require_rate(given, rate)


def test_the_stable_rate_is_that_of_the_tangent_kernel() -> None:
    network = build("kipnet,width=3,depth=1", (1, 4, 4), 3)
    theta = network.init(Key(0)).double()
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = theta.clone().requires_grad_()
    outputs = network(leaf, images)[1].sum(1) / 3**0.5
    jacobian = torch.stack([torch.autograd.grad(out, leaf, retain_graph=True)[0] for out in outputs])
    largest = float(torch.linalg.eigvalsh(jacobian @ jacobian.T)[-1])
    assert stable_rate(network, theta, images) == pytest.approx(2 * 5 * 3 / largest, rel=1e-4)


def test_a_protocol_of_the_stable_rate_trains_with_it(network: Network, data: Dataset) -> None:
    protocol = replace(SHORT, lr_of="stable", recipe=replace(SHORT.recipe, lr=0.5, loss="mse"))
    found = score(network, data, protocol)
    again = replace(protocol, lr_of="number", recipe=replace(protocol.recipe, lr=found.lr))
    assert score(network, data, again).accuracy == found.accuracy
    assert score(network, data, protocol, seed=1).lr != found.lr  # each network has its own


def rows(labels: Tensor, classes: int, noise: float) -> Tensor:
    soft = torch.nn.functional.one_hot(labels, classes).float()
    return soft + noise * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", ["ce", "bce", "mse"])
def test_label_rows_of_ones_and_zeros_are_hard_labels(network: Network, data: Dataset, loss: Any) -> None:
    protocol = replace(SHORT, recipe=replace(SHORT.recipe, loss=loss))
    hard, soft = score(network, data, protocol), score(network, data, protocol, labels=rows(data.train_labels, 3, 0.0))
    assert hard == soft
    assert score(network, data, protocol, labels=rows(data.train_labels, 3, 0.3)) != hard


def test_cross_entropy_takes_rows_as_distributions_and_squares_as_they_are(network: Network, data: Dataset) -> None:
    labels = rows(data.train_labels, 3, 0.4)
    assert labels.min() < 0
    images = data.normalise(data.train_images)
    cross = Evaluator(network, SHORT, data, images, labels, CPU, 512, False).labels
    assert cross.min() == 0
    torch.testing.assert_close(cross.sum(1), torch.ones(len(cross)))
    squares = replace(SHORT, recipe=replace(SHORT.recipe, loss="mse"))
    assert torch.equal(Evaluator(network, squares, data, images, labels, CPU, 512, False).labels, labels)


def test_squares_are_of_labels_less_their_mean() -> None:
    from esp.derivatives import loss_slope, loss_sum

    logits = torch.tensor([[0.2, -0.5, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, 0, 0], [0, 0, 1]], dtype=torch.float64)
    loss = loss_sum(logits, targets, "mse")
    expected = 0.5 * ((logits - (targets - 1 / 3)) ** 2).mean(1).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], loss_slope(logits, targets, "mse"))
