from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from pydantic import TypeAdapter

from esp.core import Method
from esp.errors import UnknownNameError
from esp.methods import METHODS
from esp.presets import LOOPS, PRESETS, describe, loops, preset
from esp.registry import resolve
from esp.spaces import SPACES

CELLS = [("svhn", 1), ("cifar10", 1), ("cifar10", 10), ("cifar10", 50), ("cifar100", 10), ("tinyimagenet", 10)]
CELLS += [("digits", 1), ("folder:/own", 7), ("cifar10", 200), ("cifar10", 0)]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_of_every_cell_makes_a_method(method: str, name: str) -> None:
    kind = resolve(METHODS, "method", method)
    for dataset, ipc in CELLS:
        found = preset(method, name, dataset, ipc)
        made: Method = TypeAdapter(kind).validate_python(dict(found.options))
        for option, value in found.options.items():
            assert type(getattr(made, option)) is type(value), (method, option)
        assert found.space in SPACES
        assert found.note
        assert bool(found.experts) == kind.needs_experts
        if kind.needs_experts and name == "paper":
            assert found.experts
            assert getattr(made, "start_max", 0) + getattr(made, "segment", 0) <= found.experts[1]


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "options"),
    [
        ("dc", "cifar10", 1, {"steps": 1_000, "outer": 1, "inner": 1}),
        ("dsa", "svhn", 10, {"steps": 10_000, "outer": 10, "inner": 50}),
        ("dc", "cifar10", 50, {"steps": 50_000, "outer": 50, "inner": 10}),
        ("dm", "cifar10", 50, {}),
        ("dm", "cifar10", 100, {"lr_pixels": 10.0}),
        ("idc", "svhn", 1, {"train_images": 500}),
        ("idc", "cifar10", 10, {}),
        ("idc", "mnist", 10, {"distance": "l1"}),
        ("kfs", "cifar10", 1, {}),
        ("kfs", "tinyimagenet", 1, {"steps": 10_500, "real_classes": 20}),
        ("cafe", "cifar10", 10, {"outer": 40, "inner": 200}),
        ("mtt", "svhn", 1, {"student_steps": 50, "segment": 2, "start_max": 4, "batch": 0, "lr_pixels": 1e3,
                            "lr_rate": 1e-7, "rate": 1e-2}),
        ("mtt", "cifar100", 50, {"student_steps": 80, "segment": 2, "start_max": 39, "batch": 125, "lr_pixels": 1e3,
                                 "lr_rate": 1e-5, "rate": 1e-2}),
    ],
)  # fmt: skip
def test_the_constants_are_those_of_the_cell(method: str, dataset: str, ipc: int, options: dict[str, Any]) -> None:
    assert preset(method, "paper", dataset, ipc).options == options


@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "network", "origin"),
    [
        ("dc", "cifar10", 10, "", "published"),
        ("dc", "cifar10", 10, "convnet3", "published"),
        ("dc", "cifar10", 10, "convnet3,width=64", "proposed"),
        ("dc", "cifar10", 7, "", "proposed"),
        ("dm", "tinyimagenet", 10, "convnet4", "published"),
        ("dm", "tinyimagenet", 10, "convnet3", "proposed"),
        ("dm", "digits", 10, "convnet3", "proposed"),
        ("mtt", "cifar10", 1, "", "published"),
        ("mtt", "svhn", 1, "", "proposed"),
        ("esp", "cifar10", 1, "", "proposed"),
        ("kfs", "cifar10", 1, "", "proposed"),
        ("random", "svhn", 50, "", "published"),
    ],
)
def test_only_constants_that_somebody_stated_are_called_published(
    method: str, dataset: str, ipc: int, network: str, origin: str
) -> None:
    assert preset(method, "paper", dataset, ipc, network).origin == origin


def test_whitening_goes_with_its_own_constants() -> None:
    own = preset("mtt", "paper", "cifar10", 1)
    assert (own.space, own.options["lr_pixels"], own.options["start_max"]) == ("zca", 100.0, 1)
    plain = preset("mtt", "paper", "cifar10", 1, space="normalised")
    assert (plain.space, plain.options["lr_pixels"], plain.options["start_max"]) == ("normalised", 1000.0, 4)
    assert plain.origin == "proposed"
    assert preset("mtt", "paper", "cifar100", 10).space == "normalised"
    assert preset("mtt", "paper", "cifar100", 1, space="normalised").options["student_steps"] == 20
    assert preset("mtt", "paper", "cifar10", 10, space="zca").origin == "published"


@pytest.mark.parametrize(
    ("method", "ipc", "steps"),
    [
        ("dc", 1, 200), ("dsa", 10, 2_000), ("dm", 1, 2_000), ("kfs", 1, 2_500), ("idc", 1, 2_000), ("mtt", 1, 1_000),
        ("cafe", 1, 200), ("esp", 1, 2_000), ("kip", 1, 300),
    ],
)  # fmt: skip
def test_quick_is_the_papers_with_fewer_steps(method: str, ipc: int, steps: int) -> None:
    paper, quick = (preset(method, name, "cifar10", ipc) for name in PRESETS)
    assert quick.options["steps"] == steps < resolve(METHODS, "method", method)(**paper.options).steps
    shared = paper.options.keys() - {"steps", "start_max"}
    assert all(quick.options[name] == paper.options[name] for name in shared)
    assert quick.origin == "proposed"


def test_quick_student_starts_fit_its_short_experts() -> None:
    for dataset, ipc in CELLS:
        found = preset("mtt", "quick", dataset, ipc)
        assert found.experts == (20, 25)
        assert found.options["start_max"] + found.options["segment"] <= 25


def test_a_network_without_convolutions_has_the_lower_rate_of_dc() -> None:
    assert preset("dc", "paper", "cifar10", 1, "mlp,width=32").options["lr_pixels"] == 0.01
    assert "lr_pixels" not in preset("dc", "paper", "cifar10", 1, "convnet3,width=32").options


def test_a_method_of_ones_own_has_its_defaults() -> None:
    assert preset("own.module:Mine", "quick", "cifar10", 1).options == {}
    with pytest.raises(UnknownNameError, match="unknown preset 'fast'"):
        preset("dm", "fast", "cifar10", 1)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"preset": "paper", "preset_base": "paper", "changed_options": {}}, ""),
        ({"preset": "quick", "preset_base": "quick", "changed_options": {}}, ""),
        ({"preset": "custom", "preset_base": "paper", "changed_options": {"beta": 0.0}}, "beta=0.0"),
        ({"preset": "custom", "preset_base": "quick", "changed_options": {"dm": 0, "beta": 1}}, "quick dm=0 beta=1"),
        ({"preset": "custom", "changed_options": {"steps": 3}}, "steps=3"),
        ({"preset": "custom", "preset_base": "paper", "method": "dm", "dataset": "svhn", "ipc": 1, "space": "zca"},
         "space=zca"),
        ({"preset": "custom", "preset_base": "quick", "method": "mtt", "dataset": "cifar10", "ipc": 1},
         "quick space=normalised"),
        ({"preset": "default", "changed_options": {}}, ""),
    ],
)  # fmt: skip
def test_what_differs_from_the_paper_is_said(request_: dict[str, Any], text: str) -> None:
    assert describe(request_) == text


def test_loops_of_the_table_are_kept() -> None:
    assert {ipc: loops(ipc) for ipc in LOOPS} == LOOPS


def test_presets_name_options_that_exist() -> None:
    for method in METHODS:
        known = {field.name for field in fields(resolve(METHODS, "method", method))}
        for name in PRESETS:
            assert preset(method, name, "cifar100", 10).options.keys() <= known


def test_presets_are_read_without_torch() -> None:
    code = (
        "import sys; from esp.presets import preset; preset('mtt', 'quick', 'svhn', 3); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
