from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esp.core import Method, State, Task, condense
from esp.data.dataset import Dataset
from esp.errors import InputError, MismatchError
from esp.methods.herding import Herding, KCenter, cover, herd
from esp.networks.flat import build as build_network
from esp.trajectory import Experts

LINE = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
SELECTIONS = pytest.mark.parametrize("method", [Herding(), KCenter()], ids=["herding", "kcenter"])


def clouds(draw: st.DrawFn) -> Tensor:
    size, seed = (draw(st.integers(3, 9)), draw(st.integers(1, 4))), draw(st.integers(0, 10_000))
    # Whole numbers, so that equal rows and ties happen.
    return torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(seed)).double()


features = st.composite(clouds)()


def test_herding_on_a_line() -> None:
    # The mean is 3.25: nearest is 2. Twice the mean less 2 is 4.5: nearest of the rest is 1. Then 6.75: 10.
    assert herd(LINE, 4).tolist() == [2, 1, 3, 0]
    assert herd(LINE, 1).tolist() == [2]


@given(features)
def test_every_pick_of_herding_is_as_good_as_the_best_by_brute_force(rows: Tensor) -> None:
    picks = herd(rows, len(rows)).tolist()
    assert sorted(picks) == list(range(len(rows)))
    for number, pick in enumerate(picks):
        before = picks[:number]
        # What each choice makes of the mean of all picks.
        off = {
            i: float((rows[[*before, i]].mean(0) - rows.mean(0)).norm()) for i in range(len(rows)) if i not in before
        }
        assert off[pick] == pytest.approx(min(off.values()), abs=1e-12)


def test_k_center_on_a_line() -> None:
    assert cover(LINE, 4).tolist() == [2, 3, 0, 1]


@given(features)
def test_every_pick_of_k_center_is_the_farthest_by_brute_force(rows: Tensor) -> None:
    picks = cover(rows, len(rows)).tolist()
    assert sorted(picks) == list(range(len(rows)))
    middle = [float((row - rows.mean(0)).norm()) for row in rows]
    assert middle[picks[0]] == pytest.approx(min(middle), abs=1e-12)
    for number in range(1, len(picks)):
        gaps = {
            i: min(float((rows[i] - rows[j]).norm()) for j in picks[:number])
            for i in range(len(rows))
            if i not in picks[:number]
        }
        assert gaps[picks[number]] == pytest.approx(max(gaps.values()), abs=1e-12)


def selected(method: Method, task: Task, seed: int = 0) -> State:
    (only,) = [state for state, _ in condense(method, task, seed)]
    return only


@SELECTIONS
def test_the_images_are_those_whose_features_at_the_last_snapshot_are_chosen(
    make_task: Callable[..., Task], method: Method
) -> None:
    task, choose = make_task(ipc=4), herd if isinstance(method, Herding) else cover
    assert task.experts is not None
    real = task.data.normalise(task.data.train_images)
    for seed, number in ((0, 0), (1, 1), (2, 0)):
        theta = task.experts.trajectories[number].segment(0, 5)[-1]
        expected = []
        for label in range(3):
            images = real[task.data.train_labels == label]
            expected.append(images[choose(task.network(theta, images)[0].double(), 4)])
        assert torch.equal(selected(method, task, seed)["set.pixels"], torch.cat(expected))
    assert not torch.equal(selected(method, task, 0)["set.pixels"], selected(method, task, 1)["set.pixels"])


@SELECTIONS
def test_chunks_and_larger_budgets_keep_the_picks(make_task: Callable[..., Task], method: Method) -> None:
    whole = selected(method, make_task(ipc=5))["set.pixels"].reshape(3, 5, -1)
    assert torch.equal(selected(method, make_task(ipc=5, chunk=3))["set.pixels"].reshape(3, 5, -1), whole)
    assert torch.equal(selected(method, make_task(ipc=2))["set.pixels"].reshape(3, 2, -1), whole[:, :2])


@SELECTIONS
def test_what_a_selection_cannot_work_with_is_refused(
    make_task: Callable[..., Task], method: Method, data: Dataset
) -> None:
    for task, error, match in (
        (make_task("latent"), InputError, "which only pixels can hold"),
        (make_task(experts=None), InputError, "needs expert trajectories"),
        (make_task(experts=Experts(())), InputError, "needs expert trajectories"),
        (make_task(network=build_network("convnet3,width=5", data.shape, 3)), MismatchError, "has network"),
    ):
        with pytest.raises(error, match=match):
            next(condense(method, task, 0))
