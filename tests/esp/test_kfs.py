from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from esp.core import Task, condense, synthetic_parameters
from esp.errors import InputError, UnknownNameError
from esp.methods.dm import DM
from esp.methods.kfs import KFS
from esp.parametrisation import Frame, Latent, decode_all
from esp.rng import Key

TINY = KFS(steps=6, decoder_pretrain=3, real_batch=4)


def test_the_warm_up_learns_to_draw_real_images(make_task: Callable[..., Task]) -> None:
    task = make_task("latent")
    run = list(condense(KFS(steps=81, decoder_pretrain=80, real_batch=4), task, 0))
    errors = [float(metrics["reconstruction"]) for _, metrics in run[1:81]]
    assert errors[-1] < 0.8 * errors[0]
    # The error is that of every image and a training image of its class; the last update is not in it yet.
    rows = task.partners(Key(0).fold("condense").fold("partners"))
    assert torch.equal(task.data.train_labels[rows], task.labels)
    drawn = decode_all(task.parametrisation, synthetic_parameters(run[79][0]))
    assert errors[-1] == pytest.approx(float((drawn - task.images(rows)).square().mean()), rel=1e-4)
    assert "dm" in run[81][1]


def test_real_images_are_used_once_while_there_are_enough(make_task: Callable[..., Task]) -> None:
    rows = make_task("pixels", ipc=8).partners(Key(0))
    assert len(set(rows.tolist())) == 24
    more = make_task("latent").partners(Key(0))  # 24 images of each class, from eight
    assert torch.bincount(more, minlength=24).tolist() == [3] * 24


def test_after_the_warm_up_it_is_dm_with_a_fresh_optimiser(make_task: Callable[..., Task]) -> None:
    task = make_task("latent")
    run = [state for state, _ in condense(TINY, task, 0)]
    assert [int(state["step"]) for state in run] == list(range(7))
    start = {**run[0], **{f"set.{name}": value for name, value in synthetic_parameters(run[3]).items()}}
    alone = [state for state, _ in condense(DM(steps=3, real_batch=4), task, 0, start)]
    for one, two in zip(run[4:], alone, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one if name != "step")


def test_without_a_warm_up_it_is_dm_on_latent_codes(make_task: Callable[..., Task]) -> None:
    task = make_task("latent")
    kfs = list(condense(KFS(steps=2, decoder_pretrain=0, real_batch=4), task, 0))[-1][0]
    dm = list(condense(DM(steps=2, real_batch=4), task, 0))[-1][0]
    assert all(torch.equal(kfs[name], dm[name]) for name in dm)


@pytest.mark.parametrize(("ipc", "classes"), [(1, 10), (10, 10), (1, 100)])
def test_the_budget_holds_and_every_decoder_draws_every_code(ipc: int, classes: int) -> None:
    made = Latent(Frame(classes, ipc, (3, 32, 32)))
    parameters = made.init(Key(0), None)
    assert sum(value.numel() for value in parameters.values()) == made.stored <= made.frame.budget
    assert made.decode(parameters, 0, 2).shape == (2 * made.decoders, 3, 32, 32)


def test_what_it_cannot_do_is_refused(make_task: Callable[..., Task]) -> None:
    for stored in ("pixels", "multiformation"):
        with pytest.raises(InputError, match="learns codes and decoders"):
            TINY.check(make_task(stored))
    task = make_task("latent")
    with pytest.raises(InputError, match="steps=3 has none left after decoder_pretrain=3"):
        replace(TINY, steps=3).check(task)
    with pytest.raises(InputError, match="KFS needs a real_batch"):
        replace(TINY, real_batch=0).check(task)
    with pytest.raises(UnknownNameError, match="blur"):
        replace(TINY, augmentation="blur").check(task)
