from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from esp.rng import Key

names = st.lists(st.text(max_size=3) | st.integers(-3, 300), max_size=4)


def test_a_key_never_changes_its_numbers() -> None:
    # Runs that were stopped by an older version go on with these.
    assert Key(0).integer() == 6173263957902241719
    assert Key(1).fold("step", 120, "augment").integer() == 7203404888269740261


def test_generators_start_afresh_every_time() -> None:
    key = Key(3).fold("data")
    assert torch.equal(torch.rand(5, generator=key.generator()), torch.rand(5, generator=key.generator()))


@given(names, names)
def test_folding_is_concatenation_of_paths(first: list[str | int], second: list[str | int]) -> None:
    assert Key(1).fold(*first).fold(*second) == Key(1).fold(*first, *second)


@given(st.tuples(st.integers(0, 3), names), st.tuples(st.integers(0, 3), names))
def test_other_names_are_other_streams(one: tuple[int, list[str | int]], two: tuple[int, list[str | int]]) -> None:
    a, b = Key(one[0]).fold(*one[1]), Key(two[0]).fold(*two[1])
    assert (a.integer() == b.integer()) == (one == two)


def test_a_number_is_not_its_text_and_a_path_is_not_its_join() -> None:
    keys = [Key(0).fold(1), Key(0).fold("1"), Key(0).fold("a", "b"), Key(0).fold("ab"), Key(1), Key(0)]
    assert len({key.integer() for key in keys}) == len(keys)


def test_integers_seed_any_generator() -> None:
    for step in range(200):
        assert 0 <= Key(7).fold(step).integer() < 2**63


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(10, generator=Key(0).generator())
    assert torch.equal(before, torch.get_rng_state())
