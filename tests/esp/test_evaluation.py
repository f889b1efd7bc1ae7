from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from esp.data.dataset import Dataset
from esp.errors import InputError, UnknownNameError
from esp.evaluation import DSA, IDC, Evaluator, Protocol, Score, protocol
from esp.networks.flat import Network
from esp.protocols import PROTOCOLS
from esp.statistics import mean_and_sd
from esp.training import Recipe

CPU = torch.device("cpu")
SHORT = Protocol("short", Recipe(8, 8, 0.05, 0.9, 5e-4, milestones=(0.5,), reset_momentum=True))


@pytest.fixture
def real(data: Dataset) -> tuple[Tensor, Tensor]:
    """The training images themselves, as a synthetic set."""
    return data.normalise(data.train_images), data.train_labels


@pytest.fixture
def score(network: Network, data: Dataset, real: tuple[Tensor, Tensor]) -> Callable[..., Score]:
    def run(seed: int = 0, chunk: int = 512, protocol: Protocol = SHORT, data: Dataset = data, **changes: Any) -> Score:
        images, labels = changes.get("images", real[0]), real[1]
        return Evaluator(network, protocol, data, images, labels, CPU, chunk, False).score(seed)

    return run


def test_the_score_is_the_last_look_and_the_best_is_kept_beside_it(score: Callable[..., Score]) -> None:
    wild = replace(SHORT, recipe=replace(SHORT.recipe, lr=0.5, milestones=()), checks=8)
    scores = [score(seed, protocol=wild) for seed in range(6)]
    for found in scores:
        assert [epoch for epoch, _ in found.curve] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert found.accuracy == found.curve[-1][1]
        assert found.best_accuracy == max(value for _, value in found.curve)
        assert (found.best_epoch, found.best_accuracy) in found.curve
        assert found.epochs == 8
    assert any((found.best_accuracy or 0.0) > found.accuracy for found in scores)
    assert any((found.best_epoch or 8) < 8 for found in scores)


def test_the_real_images_teach_and_wrong_labels_do_not(
    score: Callable[..., Score], network: Network, data: Dataset, real: tuple[Tensor, Tensor]
) -> None:
    longer = replace(SHORT, recipe=replace(SHORT.recipe, epochs=40, augmentation="none"))
    taught = [score(seed, protocol=longer).accuracy for seed in range(3)]
    wrong = (real[1] + 1) % 3
    misled = [
        Evaluator(network, longer, data, real[0], wrong, CPU, 512, False).score(seed).accuracy for seed in range(3)
    ]
    assert sum(taught) > 3 * 0.65
    assert sum(misled) < 3 * 0.25


def test_the_same_seed_gives_the_same_score_and_chunks_change_nothing(score: Callable[..., Score]) -> None:
    assert score(3) == score(3) == score(3, chunk=4)
    losses = {score(seed).train_loss for seed in range(4)}
    assert len(losses) == 4


def test_the_global_generator_is_left_alone(score: Callable[..., Score]) -> None:
    before = torch.get_rng_state()
    score()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("epochs", "checks", "looks"),
    [(8, 4, [2, 4, 6, 8]), (8, 1, [8]), (1, 4, [1]), (3, 4, [1, 2, 3]), (7, 2, [4, 7])],
)
def test_looks_are_evenly_spaced_and_end_with_the_last_epoch(
    score: Callable[..., Score], epochs: int, checks: int, looks: list[int]
) -> None:
    cut = replace(SHORT.with_epochs(epochs), checks=checks)
    assert [epoch for epoch, _ in score(protocol=cut).curve] == looks


def test_every_epoch_is_reported(network: Network, data: Dataset, real: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []
    Evaluator(network, SHORT, data, *real, CPU, 512, False).score(0, seen.append)
    assert seen == list(range(1, 9))


def test_a_set_that_must_not_flip_is_not_flipped_in_evaluation(
    network: Network, data: Dataset, real: tuple[Tensor, Tensor]
) -> None:
    flipping = replace(SHORT, recipe=replace(SHORT.recipe, augmentation="flip"))
    plain = replace(SHORT, recipe=replace(SHORT.recipe, augmentation="none"))
    still = replace(data, flips=False)
    scores = [
        Evaluator(network, how, judge, *real, CPU, 512, False).score(0)
        for how, judge in ((flipping, still), (plain, still), (flipping, data))
    ]
    assert scores[0] == scores[1] != scores[2]


def test_protocols_are_found_by_name_and_cut_by_epochs() -> None:
    assert protocol("dsa") is DSA
    assert protocol("idc") is IDC
    cut = protocol("dsa@300")
    assert (cut.name, cut.recipe.epochs) == ("dsa@300", 300)
    assert cut == DSA.with_epochs(300)
    assert cut.hash != DSA.hash
    assert cut.recipe == replace(DSA.recipe, epochs=300)
    assert cut.with_epochs(20).name == "dsa@20"
    assert DSA.with_epochs(1001) is DSA
    assert set(PROTOCOLS) == {protocol(name).name for name in PROTOCOLS}


@pytest.mark.parametrize("name", ["dsa@", "dsa@0", "dsa@ten", "dsa@-5", "dsa@1.5", "dsa@5@6"])
def test_epochs_that_are_no_number_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="does not say a number of epochs"):
        protocol(name)


def test_an_unknown_protocol_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="unknown protocol 'das'") as caught:
        protocol("das@300")
    assert caught.value.hint == "did you mean 'dsa'?"


def test_a_protocol_must_look_at_the_test_set() -> None:
    with pytest.raises(InputError, match="at least one look"):
        replace(SHORT, checks=0)


def test_large_sets_train_for_fewer_epochs() -> None:
    epochs = [IDC.for_images(count).epochs for count in (10, 5_000, 5_001, 10_000, 10_001, 70_800)]
    assert epochs == [1000, 1000, 500, 500, 300, 300]
    assert IDC.with_epochs(1).for_images(20_000).epochs == 1
    # Milestones are fractions, so they move along.
    assert IDC.for_images(7_500).boundaries == (333, 416)


def test_mean_and_deviation_are_those_of_the_field() -> None:
    assert mean_and_sd([0.5]) == (0.5, 0.0)
    mean, deviation = mean_and_sd([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0
    assert deviation == pytest.approx(3.5**0.5)
