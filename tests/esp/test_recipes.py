from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest

from esp.errors import EspError, InputError, UnknownNameError
from esp.evaluation import DC, DSA, IDC, KIP2NN, MTT, Protocol, derive, protocol
from esp.protocols import FIELDS, NOTES, PROTOCOLS, SOURCES
from esp.recipes import values_of
from esp.training import FIRST_FIELDS, Recipe

BUILT_IN = (DC, DSA, IDC, KIP2NN, MTT)


def rates(found: Protocol, images: int = 10) -> list[float]:
    """Learning rate of every epoch, as multiples of the first."""
    recipe = found.for_images(images)
    return [recipe.lr_at(epoch) / recipe.lr for epoch in range(recipe.epochs)]


def drops(found: Protocol) -> list[tuple[int, float]]:
    """(epochs done before it, factor) of every drop of the rate."""
    values = rates(found)
    return [(i, round(b / a, 6)) for i, (a, b) in enumerate(pairwise(values), 1) if a != b]


def test_every_protocol_is_that_of_its_paper() -> None:
    common = {(p.recipe.momentum, p.recipe.weight_decay) for p in (DC, DSA, IDC, MTT)}
    assert common == {(0.9, 5e-4)}
    assert {p.name: (p.recipe.epochs, p.recipe.batch, p.recipe.augmentation) for p in (DC, DSA, MTT)} == {
        "dc": (301, 256, "none"),
        "dsa": (1001, 256, "color_crop_cutout_flip_scale_rotate"),
        "mtt": (1001, 256, "color_crop_cutout_flip_scale_rotate"),
    }
    assert (DC.recipe.lr, DSA.recipe.lr, IDC.recipe.lr) == (0.01, 0.01, 0.01)
    assert (MTT.lr_of, MTT.recipe.lr, MTT.fallback_lr) == ("learned", 1.0, 0.0)
    assert {p.recipe.mode for p in (DC, DSA, MTT)} == {"single"}
    assert (IDC.recipe.batch, IDC.recipe.cutmix, IDC.recipe.mode) == (64, 0.5, "sequence")
    assert (KIP2NN.steps, KIP2NN.recipe.batch, KIP2NN.recipe.weight_decay) == (5000, 100, 1e-3)
    assert (KIP2NN.lr_of, KIP2NN.recipe.loss, KIP2NN.network) == ("stable", "mse", "kipnet")


def test_every_schedule_drops_where_its_code_does() -> None:
    # After epoch E // 2 + 1, counted from 0 in a loop of E + 1 epochs: E // 2 + 2 epochs are done.
    assert drops(DC) == [(152, 0.1)]
    assert drops(DSA) == drops(MTT) == [(502, 0.1)]
    assert DC.recipe.reset_momentum
    assert DSA.recipe.reset_momentum
    assert MTT.recipe.reset_momentum
    assert drops(IDC) == [(666, 0.2), (833, 0.2)]
    assert not IDC.recipe.reset_momentum
    assert drops(protocol("dc@600")) == [(303, 0.1)]


def test_the_cosine_of_kip_falls_step_by_step() -> None:
    recipe = KIP2NN.for_images(1_000)
    assert recipe.epochs == 500  # ten steps each
    assert recipe.lr_at(0) == 1.0
    assert recipe.lr_at(250) == pytest.approx(0.5)
    assert recipe.lr_at(499.9) == pytest.approx(0.0, abs=1e-6)
    assert recipe.lr_at(0.1) < recipe.lr_at(0)


@pytest.mark.parametrize(("images", "epochs"), [(10, 5000), (100, 5000), (101, 2500), (1_500, 334), (20_000, 25)])
def test_a_length_in_steps_holds_for_any_set(images: int, epochs: int) -> None:
    assert KIP2NN.for_images(images).epochs == epochs


def changed(key: str, value: Any) -> Any:
    """Some other value that the field can have."""
    words = {
        "single": "sequence",
        "sequence": "single",
        "ce": "bce",
        "mse": "ce",
        "number": "stable",
        "stable": "number",
        "learned": "number",
        "last": "held-out",
    }
    if key == "schedule":
        return "cosine" if value == "steps" else "steps"
    if key == "large":
        return (*value, (20_000, 0.1))
    if isinstance(value, tuple):
        return (*value, 0.9)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return words.get(value, ("flip" if value == "none" else "none") if key == "augmentation" else "convnet3")
    return value + 1 if isinstance(value, int) else value / 2 + 0.001


@pytest.mark.parametrize("base", BUILT_IN, ids=lambda base: base.name)
def test_the_hash_changes_with_every_field_but_the_name(base: Protocol) -> None:
    base = replace(base, select="held-out", recipe=replace(base.recipe, milestones=()))
    assert replace(base, name="other").hash == base.hash
    hashes = {base.hash}
    for key, value in values_of(base).items():
        new = {key: changed(key, value)}
        if key == "milestones":
            new["schedule"] = "steps"
        if key == "select":
            new = {"select": "last"}
        inside = {name: new.pop(name) for name in list(new) if hasattr(base.recipe, name)}
        hashes.add(replace(base, recipe=replace(base.recipe, **inside), **new).hash)
    assert len(hashes) == 1 + len(values_of(base))


def test_older_protocols_keep_the_hashes_that_their_scores_were_stored_under() -> None:
    assert (DSA.hash, IDC.hash) == ("d63f0849d4d2", "ee11499d282e")
    assert protocol("dsa@300").hash == replace(DSA, recipe=replace(DSA.recipe, epochs=300)).hash
    assert list(DSA.recipe.describe()) == list(FIRST_FIELDS)


def test_all_built_in_protocols_differ_and_are_documented() -> None:
    assert len({p.hash for p in BUILT_IN}) == len(BUILT_IN)
    assert set(PROTOCOLS) == set(SOURCES) == set(NOTES) == {p.name for p in BUILT_IN}
    assert all(protocol(p.name) is p for p in BUILT_IN)
    known = {f.name for f in (*fields(Recipe), *fields(Protocol))} - {"name", "recipe"}
    assert set(FIELDS) == known == set(values_of(DSA))
    assert all(set(notes) <= known for notes in NOTES.values())


OWN: dict[str, dict[str, Any]] = {
    "long": {"base": "dsa", "epochs": 2000, "milestones": [0.5, 0.75], "lr": 1, "large": [[100, 0.5]]},
    "longer": {"base": "long", "epochs": 4000},
    "cafe": {"base": "dc@600"},
    "taught": {"base": "dsa", "lr": "learned", "fallback_lr": 0.02},
    "fixed": {"base": "mtt", "lr": 0.03},
    "epochs": {"base": "kip2nn", "epochs": 30},
}


def test_ones_own_is_another_with_some_values_changed() -> None:
    long = protocol("long", OWN)
    recipe = replace(DSA.recipe, epochs=2000, milestones=(0.5, 0.75), lr=1.0)
    assert long == Protocol("long", recipe, large=((100, 0.5),))
    assert isinstance(long.recipe.lr, float)
    longer = protocol("longer", OWN)
    assert longer == replace(long, name="longer", recipe=replace(long.recipe, epochs=4000))
    assert protocol("cafe", OWN).recipe.epochs == 600
    taught = protocol("taught", OWN)
    assert (taught.lr_of, taught.recipe.lr, taught.fallback_lr) == ("learned", 1.0, 0.02)
    assert (protocol("fixed", OWN).lr_of, protocol("fixed", OWN).recipe.lr) == ("number", 0.03)
    assert protocol("epochs", OWN).for_images(1_000).epochs == 30
    assert protocol("long@7", OWN).name == "long@7"
    assert protocol("dsa", OWN) is DSA


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        ({}, InputError, "does not say what it is based on"),
        ({"base": 3}, InputError, "does not say what it is based on"),
        ({"base": "das"}, UnknownNameError, "unknown protocol 'das'"),
        ({"base": "mine"}, UnknownNameError, "unknown protocol 'mine'"),
        ({"base": "dsa", "epoch": 5}, UnknownNameError, "unknown key of protocol mine 'epoch'"),
        ({"base": "dsa", "epochs": "5"}, InputError, "'epochs' of protocol 'mine' must be a whole number, not '5'"),
        ({"base": "dsa", "epochs": 5.5}, InputError, "'epochs' of protocol 'mine' must be a whole number"),
        ({"base": "dsa", "epochs": True}, InputError, "'epochs' of protocol 'mine' must be a whole number"),
        ({"base": "dsa", "epochs": 0}, InputError, "protocol 'mine': a training recipe needs epochs"),
        ({"base": "dsa", "lr": float("nan")}, InputError, "'lr' of protocol 'mine' must be a finite number"),
        ({"base": "dsa", "lr": "fast"}, InputError, "'lr' of protocol 'mine' must be a number, learned or stable"),
        ({"base": "dsa", "reset_momentum": 1}, InputError, "'reset_momentum' of protocol 'mine' must be true or false"),
        ({"base": "dsa", "milestones": 0.5}, InputError, "'milestones' of protocol 'mine' must be a list"),
        ({"base": "dsa", "milestones": ["x"]}, InputError, "a number in 'milestones' of protocol 'mine'"),
        ({"base": "dsa", "milestones": [1.5]}, InputError, "'milestones' of protocol 'mine' cannot be 1.5"),
        ({"base": "dsa", "large": [5]}, InputError, "'large' of protocol 'mine' must be a list of pairs"),
        ({"base": "dsa", "momentum": 2}, InputError, "'momentum' of protocol 'mine' cannot be 2"),
        ({"base": "dsa", "augmentation": "crp"}, UnknownNameError, "unknown augmentation 'crp'"),
        ({"base": "dsa", "loss": "hinge"}, InputError, "protocol 'mine'"),
        ({"base": "dsa", "schedule": "cosine"}, InputError, "schedule=cosine with 1 milestones"),
        ({"base": "dsa", "select": "best"}, InputError, "select=best"),
        ({"base": "dsa", "lrs": [0.1]}, InputError, "need a selection"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(table: dict[str, Any], error: type[EspError], words: str) -> None:
    with pytest.raises(error) as caught:
        protocol("mine", {"mine": table})
    assert words in caught.value.message
    assert caught.value.hint


def test_an_unknown_key_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        derive("mine", {"base": "dsa", "weight_deccay": 0.0})
    assert caught.value.hint == "did you mean 'weight_decay'?"


@pytest.mark.parametrize("name", ["dsa", "mtt", "a@5", "a+held-out", "", "a b", "x:y"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        derive(name, {"base": "dsa"})


def test_two_protocols_cannot_be_each_others_base() -> None:
    with pytest.raises(UnknownNameError, match="unknown protocol 'a'"):
        protocol("a", {"a": {"base": "b"}, "b": {"base": "a"}})


def test_selection_is_named_and_cut_like_any_other() -> None:
    chosen = protocol("dsa@300+held-out")
    assert (chosen.name, chosen.recipe.epochs, chosen.select) == ("dsa@300+held-out", 300, "held-out")
    assert chosen.with_epochs(5).name == "dsa@5+held-out"
    assert chosen.hash != protocol("dsa@300").hash
    assert DSA.with_selection((0.1,)).hash != DSA.with_selection().hash
    with pytest.raises(InputError, match="does not say how to select"):
        protocol("dsa+best")
