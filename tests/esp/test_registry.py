from __future__ import annotations

import sys
from pathlib import Path

import pytest

from esp.errors import InputError, UnknownNameError, closest_hint
from esp.methods import METHODS
from esp.networks import NETWORKS
from esp.parametrisation import PARAMETRISATIONS
from esp.protocols import PROTOCOLS
from esp.registry import check, parse_spec, resolve

GIVEN = ("shape", "classes")


@pytest.mark.parametrize("table", [METHODS, NETWORKS, PROTOCOLS, PARAMETRISATIONS], ids=["m", "n", "p", "s"])
def test_every_entry_resolves(table: dict[str, str]) -> None:
    for name in table:
        assert resolve(table, "entry", name) is not None


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        check(NETWORKS, "network", "convnet33")
    assert caught.value.message == "unknown network 'convnet33'"
    assert caught.value.hint == "did you mean 'convnet3'?"


def test_a_far_off_name_gets_the_list() -> None:
    assert closest_hint("zzzz", ["dsa", "idc"]) == "known: dsa, idc"
    assert closest_hint("zzzz", []) == "there are none yet"


def test_an_object_of_ones_own_needs_no_registration() -> None:
    assert resolve({}, "thing", "esp.registry:check") is check


@pytest.mark.parametrize("name", ["esp.nowhere:x", "esp.registry:nothing", ":x", ".x:y", "esp.registry:"])
def test_an_object_that_is_not_there_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        resolve({}, "method", name)


def test_a_module_with_a_syntax_error_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_broken_method.py").write_text("class :")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match="cannot be loaded"):
        resolve({}, "method", "own_broken_method:Method")


def test_options_are_typed_like_their_defaults() -> None:
    assert parse_spec(NETWORKS, "network", "convnet,depth=2,norm=none", GIVEN) == (
        "convnet",
        {"depth": 2, "norm": "none"},
    )
    assert parse_spec(PARAMETRISATIONS, "parametrisation", "latent,hidden=8-6", ("frame",))[1] == {"hidden": (8, 6)}


def test_options_at_their_default_are_dropped_and_the_last_of_two_counts() -> None:
    assert parse_spec(NETWORKS, "network", "convnet3,width=128", GIVEN)[1] == {}
    assert parse_spec(NETWORKS, "network", "convnet3,width=64,width=32", GIVEN)[1] == {"width": 32}
    assert parse_spec(NETWORKS, "network", "convnet3,width=64,width=128", GIVEN)[1] == {}


@pytest.mark.parametrize("spec", ["convnet3,wdth=4", "convnet3,shape=4", "convnet3,", "convnet3,classes=3"])
def test_an_option_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown option of network convnet3"):
        parse_spec(NETWORKS, "network", spec, GIVEN)


@pytest.mark.parametrize("option", ["width", "width=", "width=four", "width=4.0", "width=4=4"])
def test_a_value_of_the_wrong_type_is_refused(option: str) -> None:
    with pytest.raises(InputError, match="is not a valid int"):
        parse_spec(NETWORKS, "network", f"convnet3,{option}", GIVEN)
