"""What a study searches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.errors import EspError, InputError, UnknownNameError
from esp.methods.dm import DM
from esp.methods.esp import ESP
from espctl.errors import ExpressionError
from espctl.services.tuning.space import Dimension, from_json, parse, searched, text_of


@pytest.mark.parametrize(
    ("text", "name", "dimension"),
    [
        ("segment=int(2,20)", "segment", Dimension("int", 2, 20)),
        (" segment = int ( 2 , 20 ) ", "segment", Dimension("int", 2, 20)),
        ("beta=float(1e-7,1e-3,log)", "beta", Dimension("float", 1e-7, 1e-3, log=True)),
        ("momentum=float(-.5,+0.5)", "momentum", Dimension("float", -0.5, 0.5)),
        ("start=choice(noise, real)", "start", Dimension("choice", choices=("noise", "real"))),
    ],
)
def test_a_space_is_read(text: str, name: str, dimension: Dimension) -> None:
    assert parse(text) == (name, dimension)
    assert from_json({name: dimension.describe()}) == {name: dimension}
    assert parse(f"{name}={dimension}") == (name, dimension)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", 0, "the name of an option"),
        ("segment", 7, "'='"),
        ("segment=int(2;20)", 13, "','"),
        ("segment=real(2,20)", 8, "int, float or choice"),
        ("segment=int(2.5,20)", 12, "a whole number"),
        ("segment=int(20,2)", 15, "a number above 20"),
        ("segment=int(2,20", 16, "')'"),
        ("segment=int(2,20) x", 18, "nothing more"),
        ("beta=float(0,1,log)", 11, "a number above 0"),
        ("beta=float(1,2,lin)", 15, "log"),
        ("beta=float(1e999,2)", 11, "a number"),
        ("start=choice(a,b,a)", 17, "another value"),
        ("start=choice()", 13, "a value"),
    ],
)
def test_a_malformed_space_points_at_the_place(text: str, place: int, expected: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert (caught.value.text, caught.value.place) == (text, place)
    assert f"at character {place + 1}: {expected}" in caught.value.message


@given(st.text(alphabet="abint=float(),log0129.e-+ \t", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        name, dimension = parse(text)
    except EspError:
        return
    assert parse(f"{name}={dimension}")[0] == name


@given(st.floats(1e-12, 1e6))
def test_numbers_come_back_to_the_bit(value: float) -> None:
    assert float(text_of(value)) == value
    dimension = Dimension("float", value / 10, value * 10, log=True)
    assert dimension.nearest(value) == value


@pytest.mark.parametrize(
    ("stores_images", "fixed", "names"),
    [
        (False, [], ["beta", "lr_codes", "lr_decoders", "lr_network"]),
        (True, [], ["beta", "lr_network", "lr_pixels"]),
        (True, ["beta", "lr_pixels"], ["lr_network"]),
    ],
)
def test_beta_and_the_learning_rates_in_use_are_searched_unless_fixed(
    stores_images: bool, fixed: list[str], names: list[str]
) -> None:
    space = searched("esp", ESP(), stores_images, fixed, [])
    assert list(space) == names
    assert all(
        dimension.log and dimension.low < getattr(ESP(), name) < dimension.high for name, dimension in space.items()
    )


def test_a_given_dimension_takes_the_place_of_the_default_one() -> None:
    space = searched("dm", DM(), True, [], ["lr_pixels=float(1,2)", "start=choice(real,noise)"])
    assert space == {"lr_pixels": Dimension("float", 1, 2), "start": Dimension("choice", choices=("real", "noise"))}


@pytest.mark.parametrize(
    ("fixed", "given_", "kind", "message"),
    [
        ([], ["segmnt=int(2,20)"], UnknownNameError, "unknown option of method esp 'segmnt'"),
        ([], ["segment=float(2,20)"], InputError, "segment of method esp is a whole number"),
        ([], ["proj_norm=choice(l1,l7)"], InputError, "proj_norm=l7"),
        ([], ["steps=int(0,20)"], InputError, "steps=0 of method esp would do nothing"),
        (["beta"], ["beta=float(1,2)"], InputError, "beta has a --space and --set"),
        ([], ["beta=float(1,2)", "beta=float(1,3)"], InputError, "beta has a --space and another --space"),
        (["beta", "lr_network", "lr_pixels"], [], InputError, "method esp has nothing to tune"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    fixed: list[str], given_: list[str], kind: type[EspError], message: str
) -> None:
    with pytest.raises(kind, match=message.replace("(", r"\(")):
        searched("esp", ESP(), True, fixed, given_)


@pytest.mark.parametrize(
    ("dimension", "value", "nearest"),
    [
        (Dimension("int", 2, 20), 40, 20),
        (Dimension("int", 2, 20), 10, 10),
        (Dimension("float", 0.1, 1, log=True), 0.01, 0.1),
        (Dimension("choice", choices=("a", "b")), "b", "b"),
        (Dimension("choice", choices=("true", "false")), True, "true"),
        (Dimension("choice", choices=("a", "b")), "c", None),
    ],
)
def test_the_point_nearest_to_a_default(dimension: Dimension, value: Any, nearest: Any) -> None:
    assert dimension.nearest(value) == nearest
